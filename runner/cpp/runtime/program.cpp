// Loads a program by ExecuTorch's Module, and calls its methods.
#include "runtime/program.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <algorithm>
#include <atomic>

#include "base/errors.h"
#include "package/program_file.h"
#include "runtime/thread_pool.h"
#include "runtime/trace.h"

namespace llava {
namespace {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::BackendOptions;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::LoadBackendOptionsMap;

constexpr const char* kTokenEmbedding = "token_embedding";
constexpr const char* kTextDecoder = "text_decoder";
constexpr const char* kModelCard = "get_model_card";

// Names of options of ExecuTorch's XNNPACK backend. The wheel has no header with them.
constexpr char kWorkspaceSharing[] = "workspace_sharing_mode";
constexpr char kWeightCache[] = "weight_cache_enabled";
constexpr char kPackedCachePath[] = "packed_cache_path";

std::atomic<int> num_programs = 0;
std::atomic<bool> has_loaded = false;

// The error that the runtime reported last in this thread. It says more than the code that a call returns.
thread_local std::string last_report;

// Keeps errors and drops the rest: the runtime also reports that it misses files which only Arm phones have.
void keep_errors(
    et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t length) {
  if (level == et_pal_log_level_t::kError || level == et_pal_log_level_t::kFatal) {
    last_report.assign(message, length);
  }
}

[[noreturn]] void fail(const std::string& path, const std::string& what, Error error) {
  const std::string reason = last_report.empty() ? executorch::runtime::to_string(error) : last_report;
  throw PackageError(path + " " + what + ": " + reason);
}

}  // namespace

int Program::num_loaded() {
  return num_programs;
}

bool Program::was_loaded() {
  return has_loaded;
}

struct Program::Runtime {
  Module module;

  explicit Runtime(const std::string& path) : module(path, Module::LoadMode::Mmap) { ++num_programs; }
  ~Runtime() { --num_programs; }
};

Program::Program(const std::string& path, const LoadOptions& options) : path_(path), structure_(options.structure) {
  check_program_file(path);
  has_loaded = true;
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_errors, __FILE__));
  executorch::runtime::runtime_init();
  if (options.cpu_threads > 0) {  // before anything is loaded, since XNNPACK's delegates keep the pool they find
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(uint32_t(options.cpu_threads));
  }
  runtime_ = std::make_unique<Runtime>(path);
  Module& module = runtime_->module;
  if (const Error error = module.load(executorch::runtime::Program::Verification::InternalConsistency);
      error != Error::Ok) {
    fail(path, "cannot be loaded", error);
  }
  const auto names = module.method_names();
  if (!names.ok()) {
    fail(path, "cannot be loaded", names.error());
  }
  const auto require = [&](const char* name) {
    if (!names->count(name)) {
      throw PackageError(
          path + " is a program of another kind: it lacks " + name + "; export the model with llava_export");
    }
  };
  require(kModelCard);
  const auto card = module.get(kModelCard);
  if (!card.ok() || !card->isString()) {
    fail(path, "has no model card", card.ok() ? Error::InvalidType : card.error());
  }
  const auto text = card->toString();
  card_text_.assign(text.data(), text.size());
  card_ = ModelCard::from_json(card_text_);
  std::vector<const char*> methods = {kTokenEmbedding, kTextDecoder};
  if (card_.num_image_tokens > 0) {
    methods.insert(methods.begin(), kVisionEncoder);
  } else if (options.needs_images) {
    throw PackageError(
        path + " is a language model without a vision encoder; it can draft for another: --draft-model-path");
  }
  std::for_each(methods.begin(), methods.end(), require);
  BackendOptions<3> xnnpack;
  xnnpack.set_option(kWorkspaceSharing, int(options.workspace_sharing));
  if (!options.packed_cache_path.empty()) {
    xnnpack.set_option(kWeightCache, true);
    xnnpack.set_option(kPackedCachePath, options.packed_cache_path.c_str());
  }
  LoadBackendOptionsMap backends;
  backends.set_options(kXnnpack, xnnpack.view());
  for (const char* name : methods) {
    executorch::runtime::EventTracer* tracer = options.trace ? options.trace->of(name) : nullptr;
    if (const Error error = module.load_method(name, nullptr, tracer, &backends); error != Error::Ok) {
      fail(path, std::string("cannot be loaded (") + name + ")", error);
    }
  }
  last_report.clear();  // of packed weights that ExecuTorch may not write to
}

Program::Program(Program&&) noexcept = default;
Program::~Program() = default;

template <typename... Inputs>
std::span<float> Program::run(const char* method, size_t expected, const Inputs&... inputs) {
  const auto result = runtime_->module.execute(method, {EValue(inputs)...});
  if (!result.ok()) {
    fail(path_, std::string("failed in ") + method, result.error());
  }
  const executorch::aten::Tensor tensor = result->at(0).toTensor();
  if (tensor.scalar_type() != ScalarType::Float || size_t(tensor.numel()) != expected) {
    throw PackageError(path_ + ": " + method + " gives another shape than its model card says");
  }
  return {tensor.mutable_data_ptr<float>(), expected};
}

Rows Program::encode_image(const ImageCHW& image) {
  if (card_.num_image_tokens == 0) {
    throw PackageError(path_ + " is a language model without a vision encoder, which reads no image");
  }
  const auto pixels =
      from_blob(const_cast<uint8_t*>(image.bytes.data()), {3, image.height, image.width}, ScalarType::Byte);
  const auto rows = run(kVisionEncoder, size_t(card_.num_image_tokens) * size_t(card_.hidden_size), pixels);
  return {rows.begin(), rows.end()};
}

Rows Program::embed(std::span<const int32_t> ids) {
  Rows all;
  while (!ids.empty()) {
    const auto part = ids.first(std::min(ids.size(), size_t(card_.max_seq_len)));
    ids = ids.subspan(part.size());
    std::vector<int64_t> wide(part.begin(), part.end());
    const auto tokens = from_blob(wide.data(), {1, int(wide.size())}, ScalarType::Long);
    const auto rows = run(kTokenEmbedding, wide.size() * size_t(card_.hidden_size), tokens);
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

std::span<float> Program::decode(std::span<const float> rows, int position) {
  const size_t width = size_t(card_.hidden_size);
  std::span<float> logits;
  while (!rows.empty()) {
    const auto part = rows.first(std::min(rows.size(), size_t(card_.max_seq_len) * width));
    rows = rows.subspan(part.size());
    logits = verify(part, position).last(size_t(card_.vocab_size));
    position += int(part.size() / width);
  }
  return logits;
}

std::span<float> Program::verify(std::span<const float> rows, int position) {
  const int count = int(rows.size() / size_t(card_.hidden_size));
  int64_t start = position;
  const auto embedded = from_blob(const_cast<float*>(rows.data()), {1, count, card_.hidden_size}, ScalarType::Float);
  std::vector<CacheTensor> found;
  const FindCaches finding(caches_.empty() ? &found : nullptr);
  const size_t expected = size_t(std::min(count, card_.logits_to_keep)) * size_t(card_.vocab_size);
  const auto logits = run(kTextDecoder, expected, embedded, from_blob(&start, {1}, ScalarType::Long));
  if (caches_.empty()) {
    caches_ = std::move(found);  // of a whole call: one that fails may not have come to all
  }
  return logits;
}

}  // namespace llava
