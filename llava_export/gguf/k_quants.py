"""Quantizes weights to llama.cpp's block formats Q4_K, Q5_K and Q6_K, which the gguf package only decodes.

A super-block is 256 consecutive values of a row. Q4_K and Q5_K split it into 8 sub-blocks of 32 and decode a value as
``d * scale * q - dmin * min``, with a scale and a min of 6 bits for each sub-block. Q6_K splits it into 16 sub-blocks
of 16 and decodes a value as ``d * scale * (q - 32)``, with a scale of 8 bits. ``d`` and ``dmin`` are float16, one for
each super-block.

The scales are searched as llama.cpp's reference quantizers do (``ggml-quants.c``): for each sub-block, try a few widths
of its grid, fit scale and min to the rounded values by weighted least squares, and keep the fit with the least error.
Then round scales and mins to multiples of the float16 ``d`` and ``dmin``, and values to what those can decode.

During the search sub-blocks are columns, ``[values of a sub-block, sub-blocks]``, for speed.
"""

from __future__ import annotations

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, QK_K, GGMLQuantizationType
from torch import Tensor

CHUNK = 1024  # super-blocks that are quantized at a time, few enough for the processor's cache
# Chunks are padded to a multiple of this many super-blocks. torch would sum the columns beyond a multiple of its
# vectors' width in another order, and results would depend on the chunk.
ALIGNMENT = 8
FLOAT16_MAX = torch.finfo(torch.float16).max
# With a relative determinant up to this, all values of a sub-block were rounded to the same integer.
SINGULAR = 1e-6


def quantize_k(rows: Tensor, type: GGMLQuantizationType) -> np.ndarray:
    """Return rows ``[..., columns]`` of any float type, quantized to uint8 ``[..., columns // 256 * block bytes]``.

    Raises ``ValueError`` if 256 does not divide the columns, or for a type that is not Q4_K, Q5_K or Q6_K.
    """
    if type not in _QUANTIZERS:
        raise ValueError(f"{type.name} is none of {', '.join(known.name for known in _QUANTIZERS)}")
    *leading, columns = rows.shape
    if columns % QK_K:
        raise ValueError(f"{columns} columns are not a multiple of {QK_K}, which {type.name} needs")
    quantize = _QUANTIZERS[type]
    _, block_bytes = GGML_QUANT_SIZES[type]
    blocks = rows.detach().reshape(-1, QK_K)
    packed = np.empty((len(blocks), block_bytes), dtype=np.uint8)
    for start in range(0, len(blocks), CHUNK):
        chunk = blocks[start : start + CHUNK].float().contiguous()
        padded = torch.nn.functional.pad(chunk, (0, 0, 0, -len(chunk) % ALIGNMENT))
        packed[start : start + CHUNK] = quantize(padded)[: len(chunk)].numpy()
    return packed.reshape(*leading, columns // QK_K * block_bytes)


def _q4_k(blocks: Tensor) -> Tensor:
    """Return blocks ``[n, 256]`` as uint8 ``[n, 144]``: d, dmin, scales and mins, the values' 4 bits."""
    header, q = _scales_mins_and_values(blocks, steps=15, widths=[14 + 0.1 * i for i in range(21)])
    return torch.cat([header, _two_to_a_byte(q, apart=32)], dim=1)


def _q5_k(blocks: Tensor) -> Tensor:
    """Return blocks ``[n, 256]`` as uint8 ``[n, 176]``: d, dmin, scales and mins, values' high bits, their low bits."""
    header, q = _scales_mins_and_values(blocks, steps=31, widths=[30.5 + 0.1 * i for i in range(16)])
    high = (q.view(-1, 8, 32) >> 4) << torch.arange(8, dtype=torch.uint8)[:, None]
    return torch.cat([header, high.sum(1, dtype=torch.uint8), _two_to_a_byte(q & 15, apart=32)], dim=1)


def _q6_k(blocks: Tensor) -> Tensor:
    """Return blocks ``[n, 256]`` as uint8 ``[n, 210]``: the values' 4 low bits, their 2 high bits, scales, d."""
    x = blocks.view(-1, 16).T.contiguous()
    scales = _search_scales(x).view(-1, 16)
    d = _float16(_furthest_from_zero(scales, dim=1)[:, None] / -128)
    scales = (scales * _inverse(d)).round().clamp(-128, 127)
    q = (x * _inverse((d * scales).view(-1))).round().clamp(-32, 31) + 32
    q = q.T.reshape(-1, QK_K).to(torch.uint8)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = ((q.view(-1, 2, 4, 32) >> 4) << shifts).sum(2, dtype=torch.uint8).view(-1, 64)
    return torch.cat([_two_to_a_byte(q & 15, apart=64), high, _bytes(scales.to(torch.int8)), _bytes(d.half())], dim=1)


def _scales_mins_and_values(blocks: Tensor, steps: int, widths: list[float]) -> tuple[Tensor, Tensor]:
    """Return what Q4_K and Q5_K have in common for blocks ``[n, 256]``.

    That is their header, uint8 ``[n, 16]``, and the values as integers from 0 to ``steps``, uint8 ``[n, 256]``.
    """
    x = blocks.view(-1, 32).T.contiguous()
    scales, mins = _search_scales_and_mins(x, steps, widths)
    d, scales = _six_bits(scales.view(-1, 8))
    dmin, mins = _six_bits(mins.view(-1, 8))
    q = ((x + (dmin * mins).view(-1)) * _inverse((d * scales).view(-1))).round().clamp(0, steps)
    header = torch.cat([_bytes(d.half()), _bytes(dmin.half()), _pack_six_bits(scales, mins)], dim=1)
    return header, q.T.reshape(-1, QK_K).to(torch.uint8)


def _search_scales_and_mins(x: Tensor, steps: int, widths: list[float]) -> tuple[Tensor, Tensor]:
    """Return scales and mins ``[m]`` of the columns of ``[32, m]``: not negative, with x near scale * q - min.

    The search is in units of the column's range: t = (x - low) / (high - low), with t near scale * q + offset. Each of
    ``widths`` is the number of steps that the range, from the best offset so far, is divided into.
    """
    low = x.amin(0).clamp(max=0)  # a min is not negative, so no grid begins above zero
    span = x.amax(0) - low
    t = (x - low) * _inverse(span)
    highest_offset = low.abs() * _inverse(span)
    weights = x.square().mean(0).sqrt() + x.abs()
    weighted_t = weights * t
    sum_w, sum_t, sum_tt = weights.sum(0), weighted_t.sum(0), (weighted_t * t).sum(0)

    best_error = torch.full_like(span, torch.inf)
    best_scale, best_offset = torch.full_like(span, 1 / steps), torch.zeros_like(span)
    q, weighted_q = torch.empty_like(t), torch.empty_like(t)  # used again for every width, as new memory is slow
    for width in widths:
        torch.sub(t, best_offset, out=q).mul_(width / (1 - best_offset)).round_().clamp_(0, steps)
        torch.mul(weights, q, out=weighted_q)
        sum_q, sum_qq, sum_qt = weighted_q.sum(0), weighted_q.mul_(q).sum(0), q.mul_(weighted_t).sum(0)
        determinant = sum_w * sum_qq - sum_q.square()
        scale = (sum_w * sum_qt - sum_q * sum_t) / determinant
        offset = (sum_qq * sum_t - sum_q * sum_qt) / determinant
        at_limit = (offset > highest_offset) | (determinant <= SINGULAR * sum_w * sum_qq)
        scale = torch.where(at_limit, (sum_qt - highest_offset * sum_q) / sum_qq, scale)
        offset = torch.where(at_limit, highest_offset, offset)
        error = (
            sum_tt + scale * (scale * sum_qq + 2 * (offset * sum_q - sum_qt)) + offset * (offset * sum_w - 2 * sum_t)
        )
        # The error of a column whose values are all the same, and not positive, is not a number. This is then false.
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_offset = torch.where(better, offset, best_offset)
    return best_scale * span, (low.abs() - best_offset * span).clamp(min=0)


def _search_scales(x: Tensor) -> Tensor:
    """Return scales ``[m]`` of the columns of ``[16, m]``, with x near scale * q for q from -32 to 31.

    Large values weigh more. The search is in units of the value furthest from zero. That value gets a negative q,
    because the grid reaches further there.
    """
    furthest = _furthest_from_zero(x, dim=0)
    t = x * _inverse(furthest)
    weights = t.square()
    weighted_t = weights * t
    best_score, best_scale = torch.zeros_like(furthest), torch.zeros_like(furthest)
    for width in [32 + 0.1 * i for i in range(-9, 10)]:
        q = (t * -width).round_().clamp_(-32, 31)
        sum_qq, sum_qt = (weights * q).mul_(q).sum(0), q.mul_(weighted_t).sum(0)
        scale = sum_qt / sum_qq
        score = scale * sum_qt  # the squared error for a scale of zero, minus the one for this scale
        better = score > best_score  # false for a column of zeros, whose score is not a number
        best_score = torch.where(better, score, best_score)
        best_scale = torch.where(better, scale, best_scale)
    return best_scale * furthest


def _six_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the units ``[n, 1]`` of rows ``[n, 8]``, not negative, and the rows in those units, integers up to 63."""
    unit = _float16(values.amax(1, keepdim=True) / 63)
    return unit, (values * _inverse(unit)).round().clamp(0, 63)


def _pack_six_bits(scales: Tensor, mins: Tensor) -> Tensor:
    """Return scales and mins, ``[n, 8]`` each, as uint8 ``[n, 12]``.

    The first four of each are in the low bits of a byte, whose two high bits belong to one of the last four.
    """
    scale, scale_later = scales.to(torch.uint8).chunk(2, dim=1)
    minimum, minimum_later = mins.to(torch.uint8).chunk(2, dim=1)
    firsts = [scale | scale_later >> 4 << 6, minimum | minimum_later >> 4 << 6]
    return torch.cat([*firsts, scale_later & 15 | (minimum_later & 15) << 4], dim=1)


def _two_to_a_byte(q: Tensor, apart: int) -> Tensor:
    """Return values of 4 bits, uint8 ``[n, 256]``, as uint8 ``[n, 128]``.

    The low half of a byte is a value, and the high half the one ``apart`` places later.
    """
    low, high = q.view(len(q), -1, 2, apart).unbind(2)
    return (low | high << 4).reshape(len(q), -1)


def _furthest_from_zero(x: Tensor, dim: int) -> Tensor:
    """Return the value of the largest magnitude along a dimension, with its sign."""
    high, low = x.amax(dim), x.amin(dim)
    return torch.where(high > -low, high, low)


def _float16(x: Tensor) -> Tensor:
    """Return float32 values rounded to finite float16 values, still as float32."""
    return x.clamp(-FLOAT16_MAX, FLOAT16_MAX).half().float()


def _inverse(x: Tensor) -> Tensor:
    """Return 1 / x, and 0 for 0."""
    return torch.where(x == 0, 0.0, 1 / x)


def _bytes(x: Tensor) -> Tensor:
    """Return a tensor's bytes as uint8, along the last dimension."""
    return x.contiguous().view(torch.uint8)


_QUANTIZERS = {
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q5_K: _q5_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}
