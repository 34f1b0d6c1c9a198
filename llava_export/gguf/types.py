"""Which type each tensor of a GGUF file gets, and its values in that type.

The choices are those of llama.cpp's quantizer (``llama_tensor_get_type`` in ``llama-quant.cpp``) for files of these
names, so that a file is as large, and its parts as precise, as users of the name expect.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize
from torch import Tensor

from llava_export.gguf.k_quants import quantize_k

F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
Q4_0, Q5_0, Q5_1 = GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q5_1
Q4_K, Q5_K, Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_k_s": LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
}
# For rows that a type's blocks do not divide.
FALLBACKS = {Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, Q4_0: F16, Q5_0: F16, Q5_1: F16, Q8_0: F16}
VALUES_AT_ONCE = 1 << 20  # quantized together, so that float32 copies stay small


def text_type(name: str, shape: tuple[int, ...], *, quantization: str, num_layers: int) -> GGMLQuantizationType:
    """Of a tensor of the language model; norms and biases stay float32."""
    if len(shape) == 1:
        return F32
    return _fitting(_WANTED[quantization](name, num_layers), columns=shape[-1])


def vision_type(name: str, shape: tuple[int, ...], *, quantization: str) -> GGMLQuantizationType:
    """Of a tensor of the vision file. llama.cpp reads depthwise kernels in float16 alone."""
    if len(shape) == 4:
        return F32 if quantization == "f32" and shape[1] != 1 else F16
    if len(shape) == 1 or name == "v.position_embd.weight":
        return F32
    return _fitting({"f32": F32, "f16": F16, "q8_0": Q8_0}[quantization], columns=shape[-1])


def size_of(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * block_bytes


class Converter:
    """Converts tensors to a type, some rows on each processor at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def convert(self, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
        """Of any float dtype: its float array, or uint8 with the rows' blocks along the last dimension."""
        if kind == F16:
            return tensor.to(torch.float16).numpy()
        if kind == F32:
            return tensor.to(torch.float32).numpy()
        parts = tensor.split(max(1, VALUES_AT_ONCE // tensor.shape[-1]))
        return np.concatenate(list(self._pool.map(partial(_blocks, kind=kind), parts)))


def _blocks(rows: Tensor, *, kind: GGMLQuantizationType) -> np.ndarray:
    if kind in (Q4_K, Q5_K, Q6_K):
        return quantize_k(rows.to(torch.float32), kind)
    return quantize(rows.to(torch.float32).numpy(), kind)


def _fitting(kind: GGMLQuantizationType, *, columns: int) -> GGMLQuantizationType:
    while columns % GGML_QUANT_SIZES[kind][0]:
        kind = FALLBACKS[kind]
    return kind


def _mostly(kind: GGMLQuantizationType) -> Callable[[str, int], GGMLQuantizationType]:
    """That type for all but the head, whose errors show the most."""
    return lambda name, num_layers: Q6_K if name == "output.weight" else kind


def _q4_k_s(name: str, num_layers: int) -> GGMLQuantizationType:
    """The first values and down projections get a bit more."""
    layer, part = _layer_and_part(name)
    if (part == "attn_v" and layer < 4) or (part == "ffn_down" and layer < num_layers // 8):
        return Q5_K
    return _mostly(Q4_K)(name, num_layers)


def _q4_k_m(name: str, num_layers: int) -> GGMLQuantizationType:
    """Values and down projections get two bits more in the first and last eighth and every third layer between."""
    layer, part = _layer_and_part(name)
    eighth = num_layers // 8
    more = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    if part in ("attn_v", "ffn_down") and more:
        return Q6_K
    return _mostly(Q4_K)(name, num_layers)


def _layer_and_part(name: str) -> tuple[int, str]:
    match = re.match(r"blk\.(\d+)\.(\w+)\.", name)
    return (int(match[1]), match[2]) if match else (0, "")


_WANTED: dict[str, Callable[[str, int], GGMLQuantizationType]] = {
    "f16": lambda name, num_layers: F16,
    "q8_0": lambda name, num_layers: Q8_0,
    "q4_0": _mostly(Q4_0),
    "q4_k_s": _q4_k_s,
    "q4_k_m": _q4_k_m,
}
