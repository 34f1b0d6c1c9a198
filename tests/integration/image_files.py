"""Image files of the kinds that Pillow reads and does not write, made by hand."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

SHORT, LONG = 3, 4  # types of TIFF tags


def packed(samples: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Return rows of samples ``[H, N]`` with so many bits a sample, each row filled up to whole bytes."""
    if bits in (8, 16, 32):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((samples[..., None] >> shifts & 1).astype(np.uint8).reshape(len(samples), -1), axis=1).tobytes()


def reversed_bits(content: bytes) -> bytes:
    """Return the content with the bits of each byte in the other order."""
    return np.packbits(np.unpackbits(np.frombuffer(content, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()


def packbits(content: bytes) -> bytes:
    """Return the content in Apple's run-length encoding."""
    out = b""
    for value, run in itertools.groupby(content):
        length = len(list(run))
        while length:
            part = min(length, 128)
            out += bytes((257 - part if part > 1 else 0, value))
            length -= part
    return out


@dataclass(kw_only=True)
class Tiff:
    """A TIFF file of samples ``[H, W, C]``."""

    samples: np.ndarray
    bits: int = 8
    photometric: int = 1
    order: str = "<"
    compression: int = 1  # 1 is none, 8 deflate, 32773 packbits
    extra: tuple[int, ...] = ()
    planar: int = 1
    tile: tuple[int, int] | None = None  # width and height
    rows: int | None = None  # a strip
    fill_order: int = 1
    big: bool = False  # BigTIFF
    tags: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)  # more: type and values

    def pieces(self) -> Iterator[bytes]:
        """Return the strips or tiles, compressed."""
        height, width, channels = self.samples.shape
        planes = [self.samples] if self.planar == 1 else [self.samples[..., [i]] for i in range(channels)]
        rows = self.tile[1] if self.tile else self.rows or height
        columns = self.tile[0] if self.tile else width
        for plane in planes:
            for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
                piece = plane[top : top + rows, left : left + columns]
                if self.tile:
                    missing = ((0, rows - piece.shape[0]), (0, columns - piece.shape[1]), (0, 0))
                    piece = np.pad(piece, missing)
                content = packed(piece.reshape(len(piece), -1), self.bits, self.order)
                if self.fill_order == 2:
                    content = reversed_bits(content)
                if self.compression == 8:
                    yield zlib.compress(content)
                else:
                    yield packbits(content) if self.compression == 32773 else content

    def content(self) -> bytes:
        """Return the file."""
        height, width, channels = self.samples.shape
        pieces = list(self.pieces())
        head = 16 if self.big else 8
        offsets = tuple(itertools.accumulate(map(len, pieces[:-1]), initial=head))
        tags = {
            256: (LONG, (width,)),
            257: (LONG, (height,)),
            258: (SHORT, (self.bits,) * channels),
            259: (SHORT, (self.compression,)),
            262: (SHORT, (self.photometric,)),
            277: (SHORT, (channels,)),
            284: (SHORT, (self.planar,)),
        }
        if self.fill_order != 1:
            tags[266] = (SHORT, (self.fill_order,))
        if self.extra:
            tags[338] = (SHORT, self.extra)
        if self.tile:
            tags |= {322: (LONG, (self.tile[0],)), 323: (LONG, (self.tile[1],))}
        else:
            tags[278] = (LONG, (self.rows or height,))
        tags[324 if self.tile else 273] = (LONG, offsets)
        tags[325 if self.tile else 279] = (LONG, tuple(map(len, pieces)))
        data = b"".join(pieces)
        return self._head(head + len(data)) + data + self._directory(tags | self.tags, head + len(data))

    def _head(self, directory: int) -> bytes:
        mark = b"II" if self.order == "<" else b"MM"
        if self.big:
            return mark + struct.pack(f"{self.order}HHHQ", 43, 8, 0, directory)
        return mark + struct.pack(f"{self.order}HL", 42, directory)

    def _directory(self, tags: dict[int, tuple[int, tuple[int, ...]]], start: int) -> bytes:
        entry, count, offset = ("HHQ", "Q", "Q") if self.big else ("HHL", "H", "L")
        size = struct.calcsize("<" + offset)
        values_at = start + struct.calcsize("<" + count) + len(tags) * struct.calcsize(f"<{entry}{size}s") + size
        entries, values = b"", b""
        for tag, (kind, numbers) in sorted(tags.items()):
            value = struct.pack(f"{self.order}{len(numbers)}{'H' if kind == SHORT else 'L'}", *numbers)
            if len(value) > size:
                place = struct.pack(f"{self.order}{offset}", values_at + len(values))
                values += value + bytes(len(value) % 2)
            else:
                place = value
            entries += struct.pack(f"{self.order}{entry}{size}s", tag, kind, len(numbers), place)
        return struct.pack(f"{self.order}{count}", len(tags)) + entries + bytes(size) + values


def bmp(
    rows: list[bytes],
    *,
    size: tuple[int, int],
    bits: int,
    header: int = 40,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    colors: bytes = b"",
    top_down: bool = False,
) -> bytes:
    """Return a BMP file with the rows as they are stored, of a size in pixels; ``colors`` is its whole palette."""
    width, height = size
    if header == 12:
        info = struct.pack("<LHHHH", 12, width, height, 1, bits)
    else:
        entries = len(colors) // 4
        signed = -height if top_down else height
        info = struct.pack("<LLlHHLLLLLL", header, width, signed, 1, bits, compression, 0, 0, 0, entries, 0)
        info += struct.pack(f"<{len(masks)}L", *masks)
        info = info.ljust(max(header, len(info)), b"\0")
    pixels = b"".join(rows)
    start = 14 + len(info) + len(colors)
    return b"BM" + struct.pack("<LHHL", start + len(pixels), 0, 0, start) + info + colors + pixels


def aligned(row: bytes) -> bytes:
    """Return a row of a BMP filled up to four bytes."""
    return row.ljust((len(row) + 3) // 4 * 4, b"\0")


def gif(
    indices: np.ndarray,
    *,
    screen: tuple[int, int],
    at: tuple[int, int] = (0, 0),
    colors: bytes = b"",
    local_colors: bytes = b"",
    transparent: int | None = None,
    interlaced: bool = False,
    extensions: bytes = b"",
) -> bytes:
    """Return a GIF of one image ``[H, W]`` on a screen; palettes have three bytes a color, and 2^n colors."""

    def flags(palette: bytes) -> int:
        return 0x80 | (len(palette) // 3).bit_length() - 2 if palette else 0

    height, width = indices.shape
    if interlaced:
        indices = np.concatenate([indices[0::8], indices[4::8], indices[2::4], indices[1::2]])
    codes: list[int] = []
    for position, index in enumerate(indices.reshape(-1).tolist()):
        codes += [256, index] if position % 200 == 0 else [index]  # a table that small keeps codes at 9 bits
    bits = "".join(f"{code:09b}"[::-1] for code in [*codes, 257])
    bits = bits.ljust((len(bits) + 7) // 8 * 8, "0")
    data = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    blocks = b"".join(bytes((len(data[i : i + 255]),)) + data[i : i + 255] for i in range(0, len(data), 255))
    control = b"" if transparent is None else struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 1, 5, transparent, 0)
    description = struct.pack("<HHHHB", *at, width, height, flags(local_colors) | (0x40 if interlaced else 0))
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, flags(colors), 0, 0)
    return head + colors + extensions + control + b"," + description + local_colors + b"\x08" + blocks + b"\0;"
