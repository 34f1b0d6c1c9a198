"""PNG files with long texts or color profiles, which Pillow refuses."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

MAX_TEXT_BYTES = 1 << 20  # of a text that is stored deflated
# Texts that may hold the orientation.
NEEDED_TEXTS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp")


def without_long_texts(stream: BinaryIO) -> BinaryIO:
    """Return a PNG without color profiles, and without texts that do not hold an orientation or are very long.

    Raises ``ValueError`` for a chunk before the pixels whose checksum is wrong, as Pillow does.
    """
    stream.seek(0)
    out = io.BytesIO()
    out.write(stream.read(8))
    has_pixels = False
    for chunk in _chunks(stream):
        kind, data, checksum = chunk[4:8], chunk[8:-4], chunk[-4:]
        has_pixels = has_pixels or kind in (b"IDAT", b"fdAT")
        if kind == b"iCCP" or (kind in (b"tEXt", b"zTXt", b"iTXt") and not _is_needed(kind, data)):
            if not has_pixels and zlib.crc32(kind + data).to_bytes(4, "big") != checksum:
                raise ValueError(f"bad header checksum in {kind!r}")
        else:
            out.write(chunk)
    out.seek(0)
    return out


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the chunks of a PNG: length, kind, data and checksum. The last one may be cut short."""
    while head := stream.read(8):
        yield head + stream.read(int.from_bytes(head[:4], "big") + 4)
        if head[4:] == b"IEND":
            return


def _is_needed(kind: bytes, data: bytes) -> bool:
    """Return True for a text that may hold the orientation and is not too long."""
    key, _, rest = data.partition(b"\0")
    if key not in NEEDED_TEXTS:
        return False
    if kind == b"zTXt":
        return _is_short(rest[1:])
    if kind == b"iTXt" and rest[:1] not in (b"", b"\0"):
        return _is_short(rest[2:].split(b"\0", 2)[-1])
    return True


def _is_short(deflated: bytes) -> bool:
    """Return True unless the data inflates to more than ``MAX_TEXT_BYTES``."""
    stream = zlib.decompressobj()
    try:
        stream.decompress(deflated, MAX_TEXT_BYTES)
    except zlib.error:
        return True
    return not stream.unconsumed_tail
