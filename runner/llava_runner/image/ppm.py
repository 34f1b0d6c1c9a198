"""PPM and PGM files. Pillow decodes plain ones, and other levels than 255, in Python: a photograph takes a minute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

BLOCK_BYTES = 1 << 22
LONGEST_TOKEN = 10  # characters
SPACES = np.isin(np.arange(256), list(b" \t\n\v\f\r"))


def decode_ppm(image: Image.Image, stream: BinaryIO) -> Image.Image:
    """Return the decoded image of a PPM, PGM or PBM file that Pillow has opened, scaled as Pillow does it.

    Raises ``ValueError`` for a file that ends too early, and for a plain value that is too large.
    """
    ((codec, _, offset, parameters),) = image.tile  # type: ignore[attr-defined]
    if codec == "raw" or image.mode == "1":
        image.load()
        return image
    levels = parameters[1]
    bands = len(image.getbands())
    largest = 65535 if image.mode == "I" else 255
    scaled = np.arange(65536 if levels > 255 else 256) / levels * largest
    table = np.rint(scaled).clip(0, largest).astype(np.int32 if image.mode == "I" else np.uint8)
    stream.seek(offset)
    blocks = _binary(stream, levels) if codec == "ppm" else _plain(stream, levels)
    samples = np.empty(image.width * image.height * bands, table.dtype)
    have = 0
    while have < samples.size:
        values = next(blocks, np.empty(0, int))[: samples.size - have]
        if values.size == 0:
            raise ValueError("it is truncated")
        if values.max() >= table.size or (codec != "ppm" and values.max() > levels):
            raise ValueError("it has a value that is not from 0 to its largest")
        samples[have : have + values.size] = table[values]
        have += values.size
    shape = (image.height, image.width, bands) if bands > 1 else (image.height, image.width)
    return Image.fromarray(samples.reshape(shape))


def _binary(stream: BinaryIO, levels: int) -> Iterator[np.ndarray]:
    """Yield the values of a binary file. A last byte that is no whole value is left out."""
    stored = np.dtype(">u2" if levels > 255 else np.uint8)
    while block := stream.read(BLOCK_BYTES):
        yield np.frombuffer(block[: len(block) // stored.itemsize * stored.itemsize], stored)


def _plain(stream: BinaryIO, levels: int) -> Iterator[np.ndarray]:
    """Yield the values of a plain file, of which some have been read when one that is none raises ``ValueError``.

    A comment goes on to the end of its line, and separates nothing.
    """
    token = b""  # that may go on in the next block
    in_comment = False
    while block := stream.read(BLOCK_BYTES):
        if in_comment or b"#" in block:
            block, in_comment = _without_comments(block, in_comment)
        block = token + block
        characters = np.frombuffer(block, np.uint8)
        spaces = np.flatnonzero(SPACES[characters])
        end = int(spaces[-1]) if spaces.size else 0
        token = block[end:]
        yield from _values(characters[:end])
        if len(token) > LONGEST_TOKEN + 1:
            raise ValueError("it has a value that is too long")
    yield from _values(np.frombuffer(token, np.uint8))


def _values(characters: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the numbers in a text; those before something else, and then a ``ValueError``."""
    is_space = SPACES[characters]
    is_digit = (characters >= ord("0")) & (characters <= ord("9"))
    edges = np.diff(np.concatenate([[True], is_space, [True]]).astype(np.int8))
    starts, ends = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1) - 1
    lengths = ends - starts + 1
    wrong = np.flatnonzero(~(is_space | is_digit))
    sound = int(np.searchsorted(ends, wrong[0])) if wrong.size else ends.size
    if (too_long := np.flatnonzero(lengths[:sound] > LONGEST_TOKEN)).size:
        sound = int(too_long[0])
    values = np.zeros(sound, np.int64)
    for place in range(int(lengths[:sound].max(initial=0))):
        at = ends[:sound] - place
        digits = np.where(at >= starts[:sound], characters[np.maximum(at, 0)].astype(np.int64) - ord("0"), 0)
        values += digits * 10**place
    if sound:
        yield values
    if sound < ends.size:
        raise ValueError("it has a value that is no number")


def _without_comments(block: bytes, in_comment: bool) -> tuple[bytes, bool]:
    """Return a block without comments, and whether it ends in one."""
    out = b""
    while block:
        if in_comment:
            ends = [at for at in (block.find(b"\n"), block.find(b"\r")) if at >= 0]
            if not ends:
                return out, True
            block = block[min(ends) + 1 :]
        text, sign, block = block.partition(b"#")
        out += text
        in_comment = bool(sign)
    return out, in_comment
