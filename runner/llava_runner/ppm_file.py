"""PPM files of any number of levels: Pillow decodes all but the usual ones a sample at a time, which takes minutes."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image

ROWS_BYTES = 1 << 24  # decoded at once


def decode_ppm(image: Image.Image, stream: BinaryIO) -> Image.Image:
    """Return the decoded image of a PPM, PGM or PBM file that Pillow has opened.

    The samples of a binary file are scaled as Pillow's ``PpmDecoder`` does. Raises ``ValueError`` for a file that ends
    too early.
    """
    ((codec, _, offset, parameters),) = image.tile  # type: ignore[attr-defined]
    if codec != "ppm":
        image.load()
        return image
    levels = parameters[1]
    bands = len(image.getbands())
    largest = 65535 if image.mode == "I" else 255
    scaled = np.arange(65536 if levels > 255 else 256) / levels * largest
    table = np.rint(scaled).clip(0, largest).astype(np.int32 if image.mode == "I" else np.uint8)
    stored = np.dtype(">u2" if levels > 255 else np.uint8)
    out = Image.new(image.mode, image.size)
    stream.seek(offset)
    row_bytes = image.width * bands * stored.itemsize
    step = max(1, ROWS_BYTES // row_bytes)
    for top in range(0, image.height, step):
        rows = min(step, image.height - top)
        content = stream.read(rows * row_bytes)
        if len(content) < rows * row_bytes:
            raise ValueError("it is truncated")
        samples = table[np.frombuffer(content, stored)]
        shape = (rows, image.width, bands) if bands > 1 else (rows, image.width)
        out.paste(Image.fromarray(samples.reshape(shape)), (0, top))
    return out
