"""A parameter as the bytes that XNNPACK's delegates hold of it.

A delegate's payload has no weights inside: it names them by keys of fixed length, which are digests of their bytes.
``NodeVisitor`` of ExecuTorch's XNNPACK backend (``get_serialized_buffer_index`` and ``get_quant_params``) says what is
packed and named how; here are the forms that this project's models come in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from executorch.exir._serialize._cord import FileBackedData
from torch import Tensor
from torchao.quantization import IntxUnpackedToInt8Tensor

SCALES = "scale_"  # what their keys begin with
SMALLEST_FILE = 1 << 16  # bytes; less is kept in memory


@dataclass(frozen=True)
class Blob:
    """Bytes that a delegate reads, and the key it reads them by."""

    key: str
    data: bytes | FileBackedData

    def stored_in(self, folder: Path) -> Blob:
        """The same on disk, from where ExecuTorch copies it into the program, unless it is small."""
        if len(self.data) < SMALLEST_FILE or isinstance(self.data, FileBackedData):
            return self
        path = folder / self.key
        path.write_bytes(self.data)
        digest = bytes.fromhex(self.key.removeprefix(SCALES))
        return replace(self, data=FileBackedData(str(path), sha256=digest))


def pack(parameter: Tensor) -> tuple[Blob, ...]:
    """Values, and scales where there are any, of a parameter as ``Recipe.quantize`` leaves it."""
    if isinstance(parameter, IntxUnpackedToInt8Tensor):
        assert not parameter.zero_point.any(), "XNNPACK's weights are symmetric"
        if parameter.target_dtype == torch.int4:  # type: ignore[attr-defined]  # torch's stubs lack int4
            return _values(two_to_a_byte(parameter.qdata)), _scales(parameter.scale.to(torch.bfloat16))
        return _values(parameter.qdata), _scales(parameter.scale)
    if parameter.dim() == 4:  # of a convolution: channels last, and those are the outputs of a depthwise one
        outputs, inputs = (1, 0) if parameter.shape[1] == 1 else (0, 1)
        parameter = parameter.permute(outputs, 2, 3, inputs)
    return (_values(parameter),)


def two_to_a_byte(values: Tensor) -> Tensor:
    """Int8 from -8 to 7 plus 8, the even ones in the low half of a byte and the odd ones in the high half."""
    pairs = values.contiguous().view(torch.uint8) + 8
    return pairs.flatten()[1::2] << 4 | pairs.flatten()[::2] & 0xF


def _values(tensor: Tensor) -> Blob:
    data = _bytes(tensor)
    return Blob(hashlib.sha256(data).hexdigest(), data)


def _scales(tensor: Tensor) -> Blob:
    data = _bytes(tensor)
    return Blob(SCALES + hashlib.sha256(data).hexdigest(), data)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
