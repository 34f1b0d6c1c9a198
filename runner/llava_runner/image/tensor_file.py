"""Image tensors ``uint8 [3, H, W]``: in ``.pt`` files, and how they are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llava_runner.errors import ImageError
from llava_runner.image.limits import check_sides
from llava_runner.image.stored_tensor import read_stored_tensor


def load_tensor(path: Path) -> np.ndarray:
    """Return the tensor ``uint8 [3, H, W]`` in a ``.pt`` file. Raises ``ImageError``."""
    pixels = read_stored_tensor(path)
    try:
        return check_pixels(pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def check_pixels(pixels: np.ndarray) -> np.ndarray:
    """Return the pixels. Raises ``ImageError`` unless they are ``uint8 [3, H, W]`` and not too small."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        shape = ", ".join(map(str, pixels.shape))
        raise ImageError(f"an image tensor is uint8 [3, H, W]; this one is {pixels.dtype} [{shape}]")
    check_sides(pixels.shape[2], pixels.shape[1])
    return pixels
