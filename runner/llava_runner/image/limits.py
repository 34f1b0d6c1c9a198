"""Limits on the size of images."""

from __future__ import annotations

from PIL import Image

from llava_runner.contract import MIN_IMAGE_SIDE
from llava_runner.errors import ImageError

MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3  # Pillow's own limit: 256 MiB in RGB
MAX_FILE_BYTES = 1 << 30


def most_pixels() -> int:
    """Return the most pixels of an image: ``MAX_PIXELS``, or fewer if a program has lowered Pillow's limit."""
    return min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)


def check_size(name: str, width: int, height: int) -> None:
    """Raise ``ImageError`` for an image of too many pixels, or with a side below ``MIN_IMAGE_SIDE``."""
    if width * height > most_pixels():
        raise ImageError(f"{name} is too large: {width}x{height} pixels; at most {most_pixels()} are read")
    try:
        check_sides(width, height)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def check_sides(width: int, height: int) -> None:
    """Raise ``ImageError`` for a side below ``MIN_IMAGE_SIDE``."""
    if min(width, height) < MIN_IMAGE_SIDE:
        raise ImageError(f"{width}x{height} pixels is too small; each side needs at least {MIN_IMAGE_SIDE}")
