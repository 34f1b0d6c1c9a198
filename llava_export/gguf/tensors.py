"""A tensor on its way from a checkpoint to a GGUF file, and how files are written, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter
from torch import Tensor

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.families.family import renamed
from llava_export.gguf.types import FILE_TYPES, Converter, size_of

SOURCE = "llava_export.source"  # the checkpoint's name, for `test_gguf`


@dataclass(frozen=True)
class GgufTensor:
    """``source`` says which tensor of the checkpoint it is; with ``num_rotary_heads`` its rows are reordered."""

    name: str
    source: CheckpointTensor
    kind: GGMLQuantizationType
    num_rotary_heads: int = 0

    @property
    def num_bytes(self) -> int:
        return size_of(self.source.shape, self.kind)

    def in_gguf_order(self, tensor: Tensor) -> Tensor:
        """Of q and k each head's two halves interleaved: llama.cpp rotates neighbors, where Llama rotates halves."""
        if not self.num_rotary_heads:
            return tensor
        return tensor.unflatten(0, (self.num_rotary_heads, 2, -1)).swapaxes(1, 2).reshape(tensor.shape)

    def in_checkpoint_order(self, tensor: Tensor) -> Tensor:
        """The opposite."""
        if not self.num_rotary_heads:
            return tensor
        return tensor.unflatten(0, (self.num_rotary_heads, -1, 2)).swapaxes(1, 2).reshape(tensor.shape)


def gguf_name(fqn: str, names: Sequence[tuple[str, str]]) -> str:
    """``names`` are (pattern, replacement) pairs; raises ``ValueError`` where none fits."""
    name = renamed(fqn, names)
    if name is None:
        raise ValueError(f"{fqn} has no name in GGUF")
    return name


def write_file(
    path: Path,
    tensors: Sequence[GgufTensor],
    *,
    checkpoint: Checkpoint,
    architecture: str,
    quantization: str,
    write_metadata: Callable[[GGUFWriter], None],
    on_tensor: Callable[[], None],
) -> None:
    """Metadata first, then each tensor as it is read and converted: memory holds one at a time."""
    writer = GGUFWriter(path, architecture)
    writer.add_name(Path(checkpoint.name).name)
    writer.add_string(SOURCE, checkpoint.name)
    writer.add_file_type(FILE_TYPES[quantization])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    write_metadata(writer)
    for tensor in tensors:
        dtype = np.dtype(np.float32)  # not looked at where the type is told
        writer.add_tensor_info(tensor.name, tensor.source.shape, dtype, tensor.num_bytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with Converter() as converter:
        for tensor in tensors:
            values = tensor.in_gguf_order(checkpoint.weights.read(tensor.source))
            writer.write_tensor_data(converter.convert(values, tensor.kind))
            on_tensor()
    writer.close()
