"""A checkpoint with the values that llama.cpp reads from a GGUF file of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from gguf import dequantize
from safetensors.torch import save_file

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.gguf.export import planned_tensors
from llava_export.gguf.options import DEFAULT_MMPROJ_TYPE
from llava_export.gguf.tensors import GgufTensor
from llava_export.gguf.types import Converter


def text_file(checkpoint: Checkpoint, quantization: str) -> list[GgufTensor]:
    """Return the tensors of the language model's GGUF file."""
    return planned_tensors(checkpoint, quantization=quantization, mmproj_type=DEFAULT_MMPROJ_TYPE)[0]


def rounded_checkpoint(checkpoint: Checkpoint, quantization: str, folder: Path) -> Checkpoint:
    """Write a checkpoint to ``folder`` whose language model is rounded to a type of llama.cpp's files. Return it.

    The values are float32. Vision tower and projector stay as they are.
    """
    weights = checkpoint.weights
    model = checkpoint.build_model(max_context_len=1)
    tensors = {weights.key(source): weights.read(source) for source in weights.tensors(model)}
    with Converter() as converter:
        for tensor in text_file(checkpoint, quantization):
            key = weights.key(tensor.source)
            blocks = converter.convert(tensor.in_gguf_order(tensors[key]), tensor.kind)
            values = torch.from_numpy(dequantize(blocks, tensor.kind).copy()).reshape(tensor.source.shape)
            tensors[key] = tensor.in_checkpoint_order(values).to(torch.float32).contiguous()
    folder.mkdir(parents=True)
    for own in checkpoint.own_folders:
        for path in own.iterdir():
            if path.is_file() and path.suffix not in (".safetensors", ".bin") and "index" not in path.name:
                shutil.copyfile(path, folder / path.name)
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(str(folder))
