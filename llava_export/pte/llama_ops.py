"""The decoder's attention on ExecuTorch's two llama operators: in-place cache update, and attention over the cache."""

from __future__ import annotations

import torch
from executorch.extension.pybindings import portable_lib  # noqa: F401  (must be loaded before the operators)

from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  (registers torch.ops.llama)  # isort: skip
from torch import Tensor

from llava_export.models.llama import CachedAttention
from llava_export.recipe import KV_CACHES


def cache_dtype(kv_cache: str) -> torch.dtype:
    """Return torch's type for a recipe's name of the KV cache."""
    return getattr(torch, KV_CACHES[kv_cache])


class LlamaOpsAttention(CachedAttention):
    """Same inputs and outputs as the plain form. Grouped queries and the causal mask are the operator's business.

    Both operators want all they are given in the cache's type.
    """

    def forward(self, q_1THE: Tensor, k_1TKE: Tensor, v_1TKE: Tensor, start: int) -> Tensor:
        dtype = self.k_cache.dtype
        torch.ops.llama.update_cache(k_1TKE.to(dtype), self.k_cache, start)
        torch.ops.llama.update_cache(v_1TKE.to(dtype), self.v_cache, start)
        y_1THE = torch.ops.llama.custom_sdpa(q_1THE.to(dtype), self.k_cache, self.v_cache, start, None, 0.0, True)
        return y_1THE.to(q_1THE.dtype)
