"""Blocks that both transformers are made of, written so that XNNPACK can take every operation.

XNNPACK has no mean over the last dimension and no layer_norm, but it multiplies matrices: both norms here take their
means as a product with a column of ``1 / size``. It is ``bmm`` and not ``linear`` because the partitioner that takes
linears one by one would make a delegate of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """The cheap GELU that CLIP was trained with: ``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class _Norm(nn.Module):
    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        # On the CPU even where parameters are built on the meta device: these are constants, no checkpoint has them.
        self.register_buffer("averager", torch.full((1, size, 1), 1.0 / size, device="cpu"), persistent=False)
        self.register_buffer("eps", torch.tensor([eps], dtype=torch.float32, device="cpu"), persistent=False)

    averager: Tensor
    eps: Tensor

    def _mean(self, x_1TD: Tensor) -> Tensor:
        return torch.bmm(x_1TD, self.averager)


class RmsNorm(_Norm):
    """Root mean square normalization over the last dimension (Zhang and Sennrich, 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(self._mean(x * x) + self.eps) * self.weight


class LayerNorm(_Norm):
    """Layer normalization over the last dimension (Ba, Kiros and Hinton, 2016)."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__(size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - self._mean(x)
        return centered * torch.rsqrt(self._mean(centered * centered) + self.eps) * self.weight + self.bias


class FusedLinear(nn.Linear):
    """One linear in place of several that read the same input: the input is quantized once and one kernel is called.

    ``parts`` maps the checkpoint's names of the several to their output features, in the order of the rows here.
    """

    def __init__(self, in_features: int, *, parts: Mapping[str, int], bias: bool) -> None:
        super().__init__(in_features, sum(parts.values()), bias=bias)
        self.parts = dict(parts)

    def fuse(self, tensors: Sequence[Tensor]) -> Tensor:
        """Weights (or biases) of the parts, ``[part_rows, ...]`` each, to the fused ``[out_features, ...]``."""
        return torch.cat(list(tensors))
