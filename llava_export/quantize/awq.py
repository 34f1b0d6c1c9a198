"""AWQ (Lin et al., 2023): weights of large inputs are multiplied by a factor before rounding, and so are rounded finer.

The inputs are divided by the same factors. That is done beforehand, in what comes before the linear, and costs nothing
at run time. A factor is a power of the size of its input. The power is the one that changes the linear's outputs least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_export.quantize.scales import ROWS_AT_ONCE, rounded, scales_for_inputs
from llava_export.quantize.weights import dequantized

POWERS = 20  # that are tried, evenly spaced from 0 to 1, besides 0
ROWS = 512  # of a weight that the powers are tried on, evenly spaced: all rows have the same inputs
LEAST_SIZE = 1e-4  # of an input, as a share of the mean


def input_factors(weight_OI: Tensor, hessian_II: Tensor, *, group_size: int) -> Tensor:
    """Return the factors ``[I]`` of a linear's inputs.

    ``hessian_II`` is the sum of ``x x^T`` over its inputs ``x``. It says how large they are, and how far an error of
    the weight moves the outputs.
    """
    squares_I = hessian_II.diagonal()
    size_I = squares_I.sqrt()
    size_I = size_I.clamp(min=max(LEAST_SIZE * float(size_I.mean()), torch.finfo(size_I.dtype).tiny))
    rows_RI = weight_OI[:: max(1, len(weight_OI) // ROWS)]
    best_I, least_loss = torch.ones_like(size_I), torch.inf
    for step in range(POWERS + 1):
        factors_I = size_I ** (step / POWERS)
        factors_I = factors_I / (factors_I.max() * factors_I.min()).sqrt()
        integers, scales = rounded_for_inputs(rows_RI * factors_I, squares_I / factors_I**2, group_size=group_size)
        error_RI = dequantized(integers, scales) / factors_I - rows_RI
        loss = float((error_RI @ hessian_II).mul_(error_RI).sum())
        if loss < least_loss:
            best_I, least_loss = factors_I, loss
    return best_I


def rounded_for_inputs(weight_OI: Tensor, squares_I: Tensor, *, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the integers ``int8 [O, I]`` and scales ``float32 [O, I / group_size]`` of a linear with 4-bit weights.

    Each weight is rounded by itself. ``squares_I`` has the sums of the squared inputs, by which errors count.
    """
    scales = scales_for_inputs(weight_OI, squares_I, group_size=group_size)
    integers = []
    for rows, its_scales in zip(weight_OI.split(ROWS_AT_ONCE), scales.split(ROWS_AT_ONCE), strict=True):
        integers.append(rounded(rows.reshape(-1, group_size), its_scales.reshape(-1, 1)).view(rows.shape))
    return torch.cat(integers), scales
