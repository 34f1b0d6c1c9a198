"""A checkpoint with the weights that its GGUF files would have, to measure what llama.cpp's types lose."""

from __future__ import annotations

from dataclasses import replace

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
        self._tensors = {tensor.source: tensor for tensor in tensors}

    def read(self, tensor: CheckpointTensor) -> Tensor:
        """Return a tensor's values as float32, rounded, in the model's shape and the checkpoint's order of rows."""
        planned = self._tensors[tensor]
        values = planned.in_gguf_order(super().read(tensor))
        with Converter() as converter:
            stored = converter.convert(values, planned.kind)
        rounded = torch.from_numpy(dequantize(stored, planned.kind)).to(torch.float32)
        return planned.in_checkpoint_order(rounded.reshape(tensor.shape))


def rounded_checkpoint(checkpoint: Checkpoint, *, quantization: str) -> tuple[Checkpoint, int]:
    """Return a checkpoint with the weights of its GGUF files, and the bytes that these take there.

    ``quantization`` is that of the language model. Vision tower and projector have the type that is llama.cpp's usual.
    """
    text, vision = planned_tensors(checkpoint, quantization=quantization, mmproj_type=DEFAULT_MMPROJ_TYPE)
    tensors = [*text, *vision]
    weights = GgufWeights(checkpoint.weights, tensors)
    return replace(checkpoint, weights=weights), sum(tensor.num_bytes for tensor in tensors)
