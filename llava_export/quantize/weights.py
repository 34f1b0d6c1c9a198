"""Quantized weights in the form that torchao has, and ExecuTorch exports: integers, scales, and how inputs are rounded.

torchao computes with them, too: it rounds the inputs of a linear to 8 bits as XNNPACK will.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchao.quantization import IntxUnpackedToInt8Tensor, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig
from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8TensorActivationQuantization,
)

from llava_export.quantize.scales import ROWS_AT_ONCE, least_error_scales, rounded

QuantizedLinear = tuple[Tensor, Tensor]  # integers ``int8 [out, in]`` and scales ``float32 [out, groups]``, 4 bits

INT_OF_BITS = {4: torch.int4, 8: torch.int8}  # type: ignore[attr-defined]  # torch's stubs lack int4
TORCHAO_ALGORITHMS = {
    "minmax": IntxChooseQParamsAlgorithm.AFFINE,
    "hqq": IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
}


@dataclass(frozen=True)
class CalibratedBlock:
    """What a calibration made of a block: its 4-bit linears, and the weights of norms that took over their factors.

    Both are by the names that they have in the block.
    """

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)


def quantized(
    weight: Tensor, *, bits: int, group_size: int | None, algorithm: str, rounds_inputs: bool
) -> nn.Parameter:
    """Return a weight ``[out, in]`` of any float type quantized to ``bits``, 4 or 8.

    ``group_size`` input features share a scale, or all of a row if it is None. With ``rounds_inputs`` a linear rounds
    its inputs to 8 bits with a scale per token, chosen at run time. ``algorithm`` is one of ``recipe.ALGORITHMS``.
    """
    if algorithm == "mse" and bits == 4:
        assert group_size is not None, "4 bits have groups"
        return _with_least_error(weight, group_size=group_size, rounds_inputs=rounds_inputs)
    # A row has more weights than 8 bits have values, so its largest magnitude is as good a choice as any.
    algorithm = "minmax" if algorithm == "mse" else algorithm
    config = _torchao_config(bits=bits, group_size=group_size, algorithm=algorithm, rounds_inputs=rounds_inputs)
    # HQQ stops when the error of all rows together no longer falls, so it has to see all of them.
    return _by_torchao(weight, config, rows=ROWS_AT_ONCE if algorithm == "minmax" else weight.shape[0])


def int4_weight(integers: Tensor, scales: Tensor, *, rounds_inputs: bool) -> nn.Parameter:
    """Return a 4-bit weight of integers ``int8 [out, in]`` and scales ``float32 [out, groups]``."""
    group_size = integers.shape[1] // scales.shape[1]
    tensor = IntxUnpackedToInt8Tensor(
        integers,
        scales,
        torch.zeros_like(scales, dtype=torch.int8),
        INT_OF_BITS[4],
        (1, group_size),
        torch.float32,
        IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN if rounds_inputs else None,
    )
    return nn.Parameter(tensor, requires_grad=False)


def dequantized(integers: Tensor, scales: Tensor) -> Tensor:
    """Return the weight ``float32 [out, in]`` that ``int4_weight`` stands for."""
    groups = integers.unflatten(1, (scales.shape[1], -1)).to(torch.float32)
    return groups.mul_(scales[..., None]).flatten(1)


def round_inputs(x: Tensor) -> Tensor:
    """Return inputs ``[..., in]`` of a linear, rounded to 8 bits as XNNPACK rounds them: a scale and zero a token."""
    low, high = x.amin(-1, keepdim=True).clamp_(max=0), x.amax(-1, keepdim=True).clamp_(min=0)
    scale = ((high - low) / 255).clamp_(min=torch.finfo(x.dtype).tiny)
    zero = (-low / scale).round_()
    return (x / scale).add_(zero).round_().clamp_(0, 255).sub_(zero).mul_(scale)


def simulate(linear: Any, weight: Tensor) -> RemovableHandle:
    """Let a linear compute with a dequantized weight ``[out, in]`` and rounded inputs. Return what ends the rounding.

    So does torchao with a quantized weight, but it would dequantize it for every sample.
    """
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear.register_forward_pre_hook(lambda _, inputs: (round_inputs(inputs[0]),))


def _with_least_error(weight: Tensor, *, group_size: int, rounds_inputs: bool) -> nn.Parameter:
    """Return a 4-bit weight whose scales are searched."""
    integers, scales = [], []
    for part in weight.split(ROWS_AT_ONCE):
        groups_NG = part.to(torch.float32).reshape(-1, group_size)
        scales_N1 = least_error_scales(groups_NG)
        integers.append(rounded(groups_NG, scales_N1).view(part.shape))
        scales.append(scales_N1.view(len(part), -1))
    return int4_weight(torch.cat(integers), torch.cat(scales), rounds_inputs=rounds_inputs)


def _torchao_config(*, bits: int, group_size: int | None, algorithm: str, rounds_inputs: bool) -> Any:
    """Return what torchao has to do with a weight."""
    granularity = PerAxis(0) if group_size is None else PerGroup(group_size)
    dtype, how = INT_OF_BITS[bits], TORCHAO_ALGORITHMS[algorithm]
    if rounds_inputs:
        return Int8DynamicActivationIntxWeightConfig(
            weight_dtype=dtype, weight_granularity=granularity, intx_choose_qparams_algorithm=how
        )
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity, intx_choose_qparams_algorithm=how)


def _by_torchao(weight: Tensor, config: Any, *, rows: int) -> nn.Parameter:
    """Return a weight quantized ``rows`` rows at a time. No scale spans two rows, so this changes only the time."""
    tensors: list[Tensor] = []
    for begin in range(0, weight.shape[0], rows):
        part = weight[begin : begin + rows]
        holder = nn.Linear(part.shape[1], part.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(part.to(torch.float32), requires_grad=False)
        quantize_(holder, config)
        quantized_part: Any = holder.weight
        # torchao gave the holder a method that refers to it, so it is freed late. Its weight must not wait for that.
        del holder.weight
        found = [getattr(quantized_part, name) for name in quantized_part.tensor_data_names]
        tensors = tensors or [values.new_empty(weight.shape[0], *values.shape[1:]) for values in found]
        for target, values in zip(tensors, found, strict=True):
            target[begin : begin + len(part)] = values
    attributes = [getattr(quantized_part, name) for name in quantized_part.tensor_attribute_names]
    return nn.Parameter(type(quantized_part)(*tensors, *attributes), requires_grad=False)
