"""A checkpoint with the weights that its GGUF files would have, to measure what llama.cpp's types lose."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import torch
from gguf.quants import dequantize
from torch import Tensor

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import CheckpointTensor, Weights
from llava_export.gguf.export import planned_tensors
from llava_export.gguf.options import DEFAULT_MMPROJ_TYPE
from llava_export.gguf.tensors import GgufTensor
from llava_export.gguf.types import Converter


class GgufWeights(Weights):
    """The tensors of ``weights``, rounded to the types that they have in a GGUF file."""

    def __init__(self, weights: Weights, tensors: list[GgufTensor]) -> None:
        vars(self).update(vars(weights))
        self._planned = {
            weights.key(tensor.source): tensor for tensor in tensors if isinstance(tensor.source, CheckpointTensor)
        }

    def read(self, tensor: CheckpointTensor) -> Tensor:
        """Return a tensor's values as float32, rounded, in the model's shape and the checkpoint's order of rows."""
        planned = self._planned[self.key(tensor)]
        values = planned.in_gguf_order(super().read(tensor))
        with Converter() as converter:
            stored = converter.convert(values, planned.kind)
        rounded = torch.from_numpy(dequantize(stored, planned.kind)).to(torch.float32)
        return planned.in_checkpoint_order(rounded.reshape(tensor.shape))


def text_file(checkpoint: Checkpoint, quantization: str) -> list[GgufTensor]:
    """Return the tensors of the language model's GGUF file."""
    return planned_tensors(checkpoint, quantization=quantization, mmproj_type=DEFAULT_MMPROJ_TYPE)[0]


def rounded_checkpoint(checkpoint: Checkpoint, quantization: str) -> Checkpoint:
    """Return a checkpoint with the weights of its GGUF files.

    ``quantization`` is that of the language model. Vision tower and projector have the type that is llama.cpp's usual.
    """
    files = planned_tensors(checkpoint, quantization=quantization, mmproj_type=DEFAULT_MMPROJ_TYPE)
    return replace(checkpoint, weights=GgufWeights(checkpoint.weights, [*chain(*files)]))


def stored_in_gguf(checkpoint: Checkpoint, quantization: str) -> int:
    """Return the bytes that all weights of a checkpoint take in its GGUF files."""
    files = planned_tensors(checkpoint, quantization=quantization, mmproj_type=DEFAULT_MMPROJ_TYPE)
    return sum(tensor.num_bytes for tensor in chain(*files))
