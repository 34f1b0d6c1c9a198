"""Which type each tensor of a GGUF file has, and its values in that type.

The choices are those of llama.cpp's quantizer (``llama_tensor_get_type`` in ``llama-quant.cpp``) for files of these
names. So a file has the size and the precision that users of the name expect.
"""

from __future__ import annotations

import os
import re
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

# llama.cpp's names of files by the values of --quantization and --mmproj-type, and "f32".
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_k_s": LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
}
# The type that most matrices of the language model have, by the value of --quantization.
MAIN_TYPES = {"f16": F16, "q8_0": Q8_0, "q4_0": Q4_0, "q4_k_s": Q4_K, "q4_k_m": Q4_K, "q5_k_m": Q5_K}
# The type to use instead where a type's blocks do not divide the rows.
FALLBACKS = {Q4_K: Q5_0, Q5_K: Q5_1, Q6_K: Q8_0, Q4_0: F16, Q5_0: F16, Q5_1: F16, Q8_0: F16}
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
VALUES_AT_ONCE = 1 << 20  # quantized together, few enough that float32 copies stay small


def text_type(
    name: str, shape: tuple[int, ...], *, quantization: str, num_layers: int, tied: bool = False
) -> GGMLQuantizationType:
    """Return the type of a language model's tensor. ``name`` is its name in GGUF. Norms and biases stay float32.

    With ``tied`` the token embedding is the head, too, and has the type of that.
    """
    if len(shape) == 1:
        return F32
    if tied and name == EMBEDDING:
        name = HEAD
    return _fitting(_matrix_type(name, quantization=quantization, num_layers=num_layers), columns=shape[-1])


def vision_type(name: str, shape: tuple[int, ...], *, quantization: str) -> GGMLQuantizationType:
    """Return the type of an mmproj's tensor. ``name`` is its name in GGUF.

    llama.cpp reads the kernels of depthwise convolutions only as float16.
    """
    if len(shape) == 4:
        return F32 if quantization == "f32" and shape[1] != 1 else F16
    if len(shape) == 1 or name == "v.position_embd.weight":
        return F32
    return _fitting({"f32": F32, "f16": F16, "q8_0": Q8_0}[quantization], columns=shape[-1])


def size_of(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Return the bytes of a tensor of this type."""
    block, block_bytes = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * block_bytes


class Converter:
    """A pool of threads that convert tensors, some rows on each processor at a time. Use it in a ``with`` block."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def convert(self, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
        """Return a tensor of any float type in this type.

        The array has floats, or uint8 with the blocks of each row along the last dimension.
        """
        if kind == F16:
            return tensor.to(torch.float16).numpy()
        if kind == F32:
            return tensor.to(torch.float32).numpy()
        parts = tensor.split(max(1, VALUES_AT_ONCE // tensor.shape[-1]))
        return np.concatenate(list(self._pool.map(partial(_blocks, kind=kind), parts)))


def _blocks(rows: Tensor, *, kind: GGMLQuantizationType) -> np.ndarray:
    """Return rows as uint8 blocks of a quantized type."""
    if kind in (Q4_K, Q5_K, Q6_K):
        return quantize_k(rows.to(torch.float32), kind)
    return quantize(rows.to(torch.float32).numpy(), kind)


def _fitting(kind: GGMLQuantizationType, *, columns: int) -> GGMLQuantizationType:
    """Return the type, or the first of its fallbacks whose blocks divide the columns."""
    while columns % GGML_QUANT_SIZES[kind][0]:
        kind = FALLBACKS[kind]
    return kind


def _matrix_type(name: str, *, quantization: str, num_layers: int) -> GGMLQuantizationType:
    """Return the type of a matrix of the language model, if its rows fit the blocks.

    Files of 4 or 5 bits keep more where errors show the most: in the head, and in some values and down projections.
    """
    main = MAIN_TYPES[quantization]
    if main in (F16, Q8_0):
        return main
    if name == HEAD:
        return Q6_K
    layer, part = _layer_and_part(name)
    if part == "attn_qkv" and quantization.endswith("k_m"):
        return {Q4_K: Q5_K, Q5_K: Q6_K}[main]
    eighth = num_layers // 8
    if quantization == "q4_k_s" and ((part == "attn_v" and layer < 4) or (part == "ffn_down" and layer < eighth)):
        return Q5_K
    # The first and the last eighth of the layers, and every third between them.
    in_some_layers = layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2
    if quantization.endswith("k_m") and part in ("attn_v", "ffn_down") and in_some_layers:
        return Q6_K
    return main


def _layer_and_part(name: str) -> tuple[int, str]:
    """Return the layer and the part in a tensor's name, or 0 and an empty string for a tensor outside the layers."""
    match = re.match(r"blk\.(\d+)\.(\w+)\.", name)
    return (int(match[1]), match[2]) if match else (0, "")
