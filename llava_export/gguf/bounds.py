"""A check of a GGUF file's head, before the ``gguf`` package reads it and believes every length that it finds."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

MAGIC = b"GGUF"
HEAD = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of keys
LENGTH, TYPE = struct.Struct("<Q"), struct.Struct("<I")
# The sizes of values by the number of their type. Texts (8) and lists (9) have lengths.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, LIST = 8, 9
SMALLEST_TENSOR = 24  # bytes of a tensor's description


def check_head(path: Path) -> None:
    """Raise ``ValueError`` unless all that the head of a file announces lies within the file."""
    size = path.stat().st_size
    if size < HEAD.size:
        raise ValueError("it is too short")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            magic, _, num_tensors, num_keys = HEAD.unpack_from(data)
            if magic != MAGIC:
                raise ValueError("it does not begin with GGUF")
            if num_tensors * SMALLEST_TENSOR > size or num_keys > size:
                raise ValueError(f"it cannot hold {num_tensors} tensors and {num_keys} keys")
            at = HEAD.size
            for _ in range(num_keys):
                at = _after_text(data, at)
                (kind,) = TYPE.unpack_from(data, at)
                at = _after_value(data, at + TYPE.size, kind)
        except struct.error as error:
            raise ValueError("it ends too early") from error


def _after_text(data: mmap.mmap, at: int) -> int:
    """Return the position behind a text. Raises ``struct.error`` behind the end of the file."""
    (length,) = LENGTH.unpack_from(data, at)
    return at + LENGTH.size + length


def _after_value(data: mmap.mmap, at: int, kind: int) -> int:
    """Return the position behind a value of a type."""
    if kind == TEXT:
        return _after_text(data, at)
    if kind in SIZES:
        return at + SIZES[kind]
    if kind != LIST:
        raise ValueError(f"it has a value of the unknown type {kind}")
    (item,) = TYPE.unpack_from(data, at)
    (count,) = LENGTH.unpack_from(data, at + TYPE.size)
    at += TYPE.size + LENGTH.size
    if item in SIZES:
        count, at = 0, at + count * SIZES[item]
    elif item != TEXT:
        raise ValueError(f"it has a list of the type {item}")
    for _ in range(count):
        at = _after_text(data, at)
    if at > len(data):
        raise ValueError("it ends too early")
    return at
