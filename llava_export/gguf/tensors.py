"""The tensors of a GGUF file, and a function that writes the file one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter
from torch import Tensor

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import CheckpointTensor, Weights
from llava_export.errors import CheckpointError
from llava_export.families.family import renamed
from llava_export.gguf.types import FILE_TYPES, Converter, size_of

LARGEST_HALF = 65504.0  # values are float16, or blocks whose scales are
SOURCE = "llava_export.source"  # the key under which a file has the checkpoint's name, for `llava verify`
# The keys of its parts, where the user named them, by the arguments of ``open_checkpoint``.
PART_KEYS = {name: f"llava_export.{name}" for name in ("base_model", "projector", "vision_tower")}


@dataclass(frozen=True)
class Fused:
    """Several of the checkpoint's tensors that are one in a file: the rows of one after those of the other."""

    parts: tuple[CheckpointTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all rows together."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file.

    ``name`` is its name in the file, ``source`` the checkpoint's tensor or tensors that it is made of, or its values
    where they are computed, and ``kind`` its type in the file. Rows of query and key projections are reordered:
    ``num_rotary_heads`` is the number of their heads, and 0 for all other tensors.
    """

    name: str
    source: CheckpointTensor | Fused | Tensor
    kind: GGMLQuantizationType
    num_rotary_heads: int = 0

    @property
    def num_bytes(self) -> int:
        """The size in the file."""
        return size_of(self.source.shape, self.kind)

    @property
    def parts(self) -> tuple[CheckpointTensor, ...]:
        """The checkpoint's tensors that it is made of, none if it is computed."""
        if isinstance(self.source, Fused):
            return self.source.parts
        return () if isinstance(self.source, Tensor) else (self.source,)

    def read(self, weights: Weights) -> Tensor:
        """Return the values as the checkpoint has them."""
        if isinstance(self.source, Tensor):
            return self.source
        tensors = [weights.read(part) for part in self.parts]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def in_gguf_order(self, tensor: Tensor) -> Tensor:
        """Return a tensor with the rows of each rotary head's two halves interleaved.

        Llama rotates row i of a head together with row i of the second half. llama.cpp rotates neighbors.
        """
        if not self.num_rotary_heads:
            return tensor
        return tensor.unflatten(0, (self.num_rotary_heads, 2, -1)).swapaxes(1, 2).reshape(tensor.shape)

    def in_checkpoint_order(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the file with its rows as in the checkpoint: the inverse of ``in_gguf_order``."""
        if not self.num_rotary_heads:
            return tensor
        return tensor.unflatten(0, (self.num_rotary_heads, -1, 2)).swapaxes(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class GgufFile:
    """A file to be written.

    ``name`` is its file name, ``architecture`` what llama.cpp calls the model, and ``quantization`` the type that most
    tensors have. ``write_metadata`` adds the keys that depend on the model.
    """

    name: str
    architecture: str
    quantization: str
    tensors: Sequence[GgufTensor]
    write_metadata: Callable[[GGUFWriter], None]


def gguf_name(fqn: str, names: Sequence[tuple[str, str]]) -> str:
    """Return the GGUF name of a parameter, by (pattern, replacement) pairs. Raises ``ValueError`` if none matches."""
    name = renamed(fqn, names)
    if name is None:
        raise ValueError(f"{fqn} has no name in GGUF")
    return name


def write_file(folder: Path, file: GgufFile, *, checkpoint: Checkpoint, on_tensor: Callable[[], None]) -> None:
    """Write a file to ``folder``, and call ``on_tensor`` after each tensor. Memory holds one tensor at a time.

    Raises ``CheckpointError`` for values that the file's types cannot hold.
    """
    writer = GGUFWriter(folder / file.name, file.architecture)
    writer.add_name(Path(checkpoint.name).name)
    writer.add_string(SOURCE, checkpoint.name)
    for name, given in checkpoint.parts.items():
        writer.add_string(PART_KEYS[name], given)
    writer.add_file_type(FILE_TYPES[file.quantization])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    file.write_metadata(writer)
    for tensor in file.tensors:
        dtype = np.dtype(np.float32)  # ignored, because raw_dtype is given
        writer.add_tensor_info(tensor.name, tensor.source.shape, dtype, tensor.num_bytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with Converter() as converter:
        for tensor in file.tensors:
            values = tensor.in_gguf_order(tensor.read(checkpoint.weights))
            if tensor.kind != GGMLQuantizationType.F32:
                for part in tensor.parts:
                    _check_half(checkpoint.weights, part)
            writer.write_tensor_data(converter.convert(values, tensor.kind))
            on_tensor()
    writer.close()


def _check_half(weights: Weights, tensor: CheckpointTensor) -> None:
    """Raise ``CheckpointError`` if a tensor, which has been read, has values that float16 cannot hold."""
    if (largest := weights.largest(tensor)) > LARGEST_HALF:
        raise CheckpointError(
            f"{weights.key(tensor)} has values up to {largest:g}, beyond {LARGEST_HALF:g}, the largest of float16"
        )
