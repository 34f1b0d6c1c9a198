// ExecuTorch's two llama operators, for a program without torch: the signatures are those of
// executorch/extension/llm/custom_ops, whose own kernels need libtorch.
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "ops/attention.h"
#include "runtime/kv_cache.h"

namespace llava {
namespace {

using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

// Writes `value` [1, T, K, E] into `cache` [1, C, K, E] from position `start` on. `out` is returned as it is:
// ExecuTorch wants every kernel to have one.
Tensor& update_cache_out(
    KernelRuntimeContext& context, const Tensor& value, Tensor& cache, const int64_t start, Tensor& out) {
  ET_KERNEL_CHECK(context, value.dim() == 4 && cache.dim() == 4 && value.size(0) == 1, InvalidArgument, out);
  ET_KERNEL_CHECK(context, value.size(2) == cache.size(2) && value.size(3) == cache.size(3), InvalidArgument, out);
  ET_KERNEL_CHECK(context, value.scalar_type() == cache.scalar_type(), InvalidArgument, out);
  ET_KERNEL_CHECK(context, start >= 0 && start + value.size(1) <= cache.size(1), InvalidArgument, out);
  const size_t position_bytes = size_t(cache.size(2)) * size_t(cache.size(3)) * size_t(cache.element_size());
  auto* bytes = static_cast<uint8_t*>(cache.mutable_data_ptr());
  std::memcpy(bytes + size_t(start) * position_bytes, value.const_data_ptr(), size_t(value.nbytes()));
  if (found_caches) {
    found_caches->push_back({bytes, position_bytes, size_t(cache.size(1))});
  }
  return out;
}

// Runs body(begin, end) over parts of 0..count on ExecuTorch's threads.
void on_pool(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t threads = std::max<int64_t>(1, executorch::extension::get_thread_count());
  executorch::extension::parallel_for(0, count, std::max<int64_t>(1, (count + threads - 1) / threads), body);
}

// Computes attention of `query` [1, T, H, E] over `keys` and `values` [1, C, K, E], filled up to start + T. Only causal
// attention, without mask and dropout, is supported: this project exports no other.
Tensor& custom_sdpa_out(
    KernelRuntimeContext& context,
    const Tensor& query,
    const Tensor& keys,
    const Tensor& values,
    const int64_t start,
    const std::optional<Tensor> mask,
    const double dropout,
    const bool is_causal,
    const std::optional<double> scale,
    Tensor& out) {
  ET_KERNEL_CHECK(context, !mask.has_value() && dropout == 0 && is_causal, NotSupported, out);
  ET_KERNEL_CHECK(context, query.dim() == 4 && keys.dim() == 4 && query.size(0) == 1, InvalidArgument, out);
  const AttentionShape shape{query.size(1), start, query.size(2), keys.size(2), query.size(3)};
  ET_KERNEL_CHECK(context, start >= 0 && start + shape.queries <= keys.size(1), InvalidArgument, out);
  ET_KERNEL_CHECK(context, shape.key_value_heads > 0 && shape.heads % shape.key_value_heads == 0, InvalidArgument, out);
  ET_KERNEL_CHECK(context, shape.head_dim == keys.size(3) && shape.head_dim <= kMaxHeadDim, InvalidArgument, out);
  const ScalarType type = query.scalar_type();
  ET_KERNEL_CHECK(context, type == keys.scalar_type() && type == values.scalar_type(), InvalidArgument, out);
  ET_KERNEL_CHECK(context, executorch::runtime::resize_tensor(out, query.sizes()) == Error::Ok, InvalidArgument, out);
  const float factor = float(scale.value_or(1.0 / std::sqrt(double(shape.head_dim))));
  const auto run = [&]<typename Element>(Element) {
    attend<Element>(
        static_cast<const Element*>(query.const_data_ptr()), static_cast<const Element*>(keys.const_data_ptr()),
        static_cast<const Element*>(values.const_data_ptr()), static_cast<Element*>(out.mutable_data_ptr()), shape,
        factor, on_pool);
  };
  if (type == ScalarType::Float) {
    run(float());
  } else if (type == ScalarType::BFloat16) {
    run(BFloat16());
  } else {
    ET_KERNEL_CHECK(context, false, NotSupported, out);
  }
  return out;
}

}  // namespace
}  // namespace llava

EXECUTORCH_LIBRARY(llama, "update_cache.out", llava::update_cache_out);
EXECUTORCH_LIBRARY(llama, "custom_sdpa.out", llava::custom_sdpa_out);
