"""Parts that both transformers are made of, written so that every operation can run in XNNPACK.

XNNPACK has no mean over the last dimension and no layer norm, but it multiplies matrices. So both norms here compute
their means as a product with a column of ``1 / size``. The product is ``bmm`` and not ``linear``: one of the
partitioners makes a delegate of every linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quick_gelu(x: Tensor) -> Tensor:
    """Return ``x * sigmoid(1.702 x)``, CLIP's approximation of GELU (Hendrycks and Gimpel, 2016)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return GELU with tanh in place of the error function (Hendrycks and Gimpel, 2016).

    It is ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``, and ``0.5 (1 + tanh(y))`` is ``sigmoid(2 y)``.
    ExecuTorch's partitioner for XNNPACK takes torch's own operator, too, but lowers it to the one with the error
    function.
    """
    scale = 2 * (2 / math.pi) ** 0.5
    return x * torch.sigmoid(x * (x * x * (0.044715 * scale) + scale))


# Functions by the names that ``hidden_act`` has in config.json. ``config.ACTIVATIONS`` lists the same names.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class _Norm(nn.Module):
    """The base of both norms: a weight, ``eps``, and the mean as a product."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        # These are constants that no checkpoint has. So they are on the CPU even if parameters are on the meta device.
        self.register_buffer("averager", torch.full((1, size, 1), 1.0 / size, device="cpu"), persistent=False)
        self.register_buffer("eps", torch.tensor([eps], dtype=torch.float32, device="cpu"), persistent=False)

    averager: Tensor
    eps: Tensor

    def _mean(self, x_1TD: Tensor) -> Tensor:
        """Return the means ``[1, T, 1]`` of rows ``[1, T, D]``."""
        return torch.bmm(x_1TD, self.averager)


class RmsNorm(_Norm):
    """Root mean square normalization over the last dimension (Zhang and Sennrich, 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return rows ``[1, T, D]``, normalized, for rows ``[1, T, D]``."""
        return x * torch.rsqrt(self._mean(x * x) + self.eps) * self.weight


class LayerNorm(_Norm):
    """Layer normalization over the last dimension (Ba, Kiros and Hinton, 2016)."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__(size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return rows ``[1, T, D]``, normalized, for rows ``[1, T, D]``."""
        centered = x - self._mean(x)
        return centered * torch.rsqrt(self._mean(centered * centered) + self.eps) * self.weight + self.bias


class FusedLinear(nn.Linear):
    """One linear in place of several that read the same input. It quantizes the input once and calls one kernel.

    ``parts`` maps the names that the several linears have in a checkpoint to their output features, in the order of the
    rows here.
    """

    def __init__(self, in_features: int, *, parts: Mapping[str, int], bias: bool) -> None:
        super().__init__(in_features, sum(parts.values()), bias=bias)
        self.parts = dict(parts)

    def fuse(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the weights (or biases) of the parts, ``[part_rows, ...]`` each, as one ``[out_features, ...]``."""
        return torch.cat(list(tensors))
