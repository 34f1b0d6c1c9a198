"""Scales of 4-bit groups, searched for the least error.

A group's integers are its weights divided by its scale, rounded, from -8 to 7. To fit the largest magnitude into that
range is simple and not best: a little smaller scale clips one weight and rounds all others more finely.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST, GREATEST = -8, 7  # of int4
# Where the search begins: the integer that the largest magnitude of a group becomes, before it is clipped. From each,
# least squares give the scale. More of them lower the error by less than one part in a hundred.
LARGEST_BECOMES = (7.0, 7.5, 8.0, 9.0)
# How many rows of a weight are worked on at a time. Intermediate results then stay in the processor's cache, which is
# several times faster.
ROWS_AT_ONCE = 128
# A group of zeros gets a scale, too. XNNPACK wants normal positive numbers.
SMALLEST_MAGNITUDE = 1e-9
LEAST_IMPORTANCE = 1e-6  # of a weight whose input is always 0, as a share of the mean


def least_error_scales(weight_NG: Tensor, importance_NG: Tensor | None = None) -> Tensor:
    """Return scales ``[N, 1]`` of N groups of G weights: float32 values that bfloat16 can hold.

    They make the sum of ``importance * (weight - scale * integer) ** 2`` small. Without ``importance``, that of a
    weight is its own magnitude, since large weights matter more than their number says.
    """
    magnitude_NG = weight_NG.abs()
    importance_NG = magnitude_NG if importance_NG is None else importance_NG
    largest_N1 = magnitude_NG.amax(-1, keepdim=True).clamp_(min=SMALLEST_MAGNITUDE)
    ones_G1 = weight_NG.new_ones(weight_NG.shape[1], 1)  # a product with it is the fastest sum
    weighted_NG = importance_NG * weight_NG
    integers_NG, products_NG = torch.empty_like(weight_NG), torch.empty_like(weight_NG)
    scale_N1, least_N1 = largest_N1 / LARGEST_BECOMES[0], torch.zeros_like(largest_N1)
    for becomes in LARGEST_BECOMES:
        torch.mul(weight_NG, becomes / largest_N1, out=integers_NG)
        integers_NG.round_().clamp_(LEAST, GREATEST)
        # With these integers the best scale is wq / qq, and it lowers the error by wq * wq / qq.
        wq_N1 = torch.mul(weighted_NG, integers_NG, out=products_NG) @ ones_G1
        qq_N1 = torch.mul(importance_NG, integers_NG.square_(), out=products_NG) @ ones_G1
        scale = wq_N1 / qq_N1
        lowered = wq_N1 * scale
        is_better = lowered > least_N1  # never where the importance of all is 0, and the scale no number
        torch.where(is_better, scale, scale_N1, out=scale_N1)
        torch.where(is_better, lowered, least_N1, out=least_N1)
    return scale_N1.to(torch.bfloat16).to(torch.float32)


def scales_for_inputs(weight_OI: Tensor, squares_I: Tensor, *, group_size: int) -> Tensor:
    """Return the scales ``[O, I / group_size]`` with the least error, weighted by the squared inputs ``[I]``."""
    importance_I = squares_I.clamp_min(squares_I.mean() * LEAST_IMPORTANCE)
    scales = []
    for rows in weight_OI.split(ROWS_AT_ONCE):
        groups_NG = rows.reshape(-1, group_size)
        importance_NG = importance_I.expand(rows.shape).reshape(groups_NG.shape)
        scales.append(least_error_scales(groups_NG, importance_NG).view(len(rows), -1))
    return torch.cat(scales)


def rounded(weight_NG: Tensor, scale_N1: Tensor) -> Tensor:
    """Return the integers ``int8 [N, G]`` of weights with these scales."""
    return (weight_NG / scale_N1).round_().clamp_(LEAST, GREATEST).to(torch.int8)
