"""Packing: a parameter of the model becomes blobs, the bytes that XNNPACK's delegates read.

A delegate is a payload, which describes operators, and named data, which has their weights. The payload refers to each
weight by a key of fixed length. The key is a digest of the weight's bytes.

The forms are those of ExecuTorch's XNNPACK backend: see ``NodeVisitor.get_serialized_buffer_index`` and
``NodeVisitor.get_quant_params`` there. This module knows those that the models of this project need.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from executorch.exir._serialize._cord import FileBackedData
from torch import Tensor
from torchao.quantization import IntxUnpackedToInt8Tensor

SCALES = "scale_"  # the keys of scales begin with it
SMALLEST_FILE = 1 << 16  # bytes; smaller blobs stay in memory


@dataclass(frozen=True)
class Blob:
    """Bytes of a parameter that a delegate reads, and the key under which it looks them up."""

    key: str
    data: bytes | FileBackedData

    def stored_in(self, folder: Path) -> Blob:
        """Write the bytes to a file in ``folder``. Return a blob that refers to the file; a small one as it is.

        ExecuTorch copies them from the file into the program.
        """
        if len(self.data) < SMALLEST_FILE or isinstance(self.data, FileBackedData):
            return self
        path = folder / self.key
        path.write_bytes(self.data)
        digest = bytes.fromhex(self.key.removeprefix(SCALES))
        return replace(self, data=FileBackedData(str(path), sha256=digest))


def pack(parameter: Tensor) -> tuple[Blob, ...]:
    """Return the blobs of a parameter in the form that ``Recipe.quantize`` leaves: values, and then scales if any."""
    if isinstance(parameter, IntxUnpackedToInt8Tensor):
        assert not parameter.zero_point.any(), "XNNPACK's weights are symmetric"
        if parameter.target_dtype == torch.int4:  # type: ignore[attr-defined]  # torch's stubs lack int4
            return _blob(two_to_a_byte(parameter.qdata)), _blob(parameter.scale.to(torch.bfloat16), prefix=SCALES)
        return _blob(parameter.qdata), _blob(parameter.scale, prefix=SCALES)
    if parameter.dim() == 4:  # of a convolution: channels last. The channels of a depthwise one are its outputs.
        outputs, inputs = (1, 0) if parameter.shape[1] == 1 else (0, 1)
        parameter = parameter.permute(outputs, 2, 3, inputs)
    return (_blob(parameter),)


def two_to_a_byte(values: Tensor) -> Tensor:
    """Return int4 values packed into bytes: uint8, one dimension, half as many elements.

    ``values`` are int8 from -8 to 7, an even number of them. Each is stored plus 8: those at even positions in the low
    half of a byte, those at odd positions in the high half.
    """
    pairs = values.contiguous().view(torch.uint8) + 8
    return pairs.flatten()[1::2] << 4 | pairs.flatten()[::2] & 0xF


def _blob(tensor: Tensor, *, prefix: str = "") -> Blob:
    """Return the bytes of a tensor. The key is their digest after ``prefix``."""
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return Blob(prefix + hashlib.sha256(data).hexdigest(), data)
