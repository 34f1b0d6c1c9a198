"""The decoder's attention, made of ExecuTorch's two llama operators.

``update_cache`` writes to the KV cache in place, and ``custom_sdpa`` is attention over the cache.
"""

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
    """Attention with the same inputs and outputs as the plain form in ``models.llama``.

    ``custom_sdpa`` applies the causal mask, and knows grouped queries. Both operators take all tensors in the cache's
    type.
    """

    def forward(self, q_1THE: Tensor, k_1TKE: Tensor, v_1TKE: Tensor, start: int) -> Tensor:
        """Write keys and values to the caches at ``start``. Return the attention's output, shaped like ``q_1THE``."""
        dtype = self.k_cache.dtype
        torch.ops.llama.update_cache(k_1TKE.to(dtype), self.k_cache, start)
        torch.ops.llama.update_cache(v_1TKE.to(dtype), self.v_cache, start)
        y_1THE = torch.ops.llama.custom_sdpa(q_1THE.to(dtype), self.k_cache, self.v_cache, start, None, 0.0, True)
        return y_1THE.to(q_1THE.dtype)
