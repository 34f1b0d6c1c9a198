"""Squares for the vision encoder: padded, cropped or stretched, and resized as Pillow does it.

Padding is never stored, so memory and time are bound by the image and not by its longer side squared. A row or column
that lies in the padding keeps its color when it is resized, so only those with a part of the image are computed, a band
at a time. The result is that of resizing the padded image, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from llava_runner.image.kernels import PRECISION_BITS, weights

Color = tuple[int, int, int]

BAND_PIXELS = 1 << 20  # of a band, at most, if a row or column is not longer
# Pillow resizes rows with their padding as long as they are at most so many times longer than the image's.
MOST_PADDING = 4


@dataclass(frozen=True)
class Side:
    """How one side is resized: ``total`` pixels become ``size``, and ``keep`` of these are wanted, from ``first`` on.

    The image begins ``before`` pixels into the total; what lies outside of it is padding.
    """

    total: int
    size: int
    keep: int
    before: int = 0
    first: int = 0


@dataclass(frozen=True)
class Square:
    """What is made of an image: its side is resized to ``resize`` pixels by ``resample``, and the center ``size`` kept.

    ``resample`` is one of ``llava_runner.contract.RESAMPLES``.
    """

    size: int
    resize: int
    resample: str

    def center(self, total: int, *, resize: int | None = None, before: int = 0) -> Side:
        """Return how a side of ``total`` pixels is resized, to another length than the square's if it is given."""
        size = resize or self.resize
        return Side(total, size, self.size, before, (size - self.size) // 2)


def padded_square(image: Image.Image, *, square: Square, color: Color) -> Image.Image:
    """Return an RGB image padded to a square with a color, half on either side, and resized."""
    total = max(image.size)
    width, height = (square.center(total, before=(total - side) // 2) for side in image.size)
    return _resize(image, width, height, square.resample, color)


def center_square(image: Image.Image, *, square: Square) -> Image.Image:
    """Return the center square of an RGB image whose shorter side was resized."""
    shorter = min(image.size)
    # CLIPImageProcessor truncates the sides instead of rounding them, and rounds the offsets down.
    width, height = (square.center(side, resize=int(square.resize * side / shorter)) for side in image.size)
    return _resize(image, width, height, square.resample)


def stretched_square(image: Image.Image, *, square: Square) -> Image.Image:
    """Return an RGB image of which both sides were resized, whatever its aspect ratio."""
    width, height = (square.center(side) for side in image.size)
    return _resize(image, width, height, square.resample)


def resized(image: Image.Image, width: int, height: int, *, resample: str) -> Image.Image:
    """Return an RGB image in another size."""
    return _resize(image, Side(image.width, width, width), Side(image.height, height, height), resample)


def _resize(image: Image.Image, width: Side, height: Side, resample: str, color: Color = (0, 0, 0)) -> Image.Image:
    """Return an image resized first along its width, then along its height.

    Pillow before version 13 always did so. Newer versions begin with the side that makes less work, and as the pixels
    are rounded in between, the result differs.
    """
    if width.total > MOST_PADDING * image.width:
        return _resize_height(_resize_width_with_much_padding(image, width, resample, color), height, resample, color)
    return _resize_height(_resize_width(image, width, resample, color), height, resample, color)


def _bands(length: int, across: int) -> Iterator[tuple[int, int]]:
    """Yield where bands of rows (or columns) begin and end; each row takes ``across`` pixels."""
    step = max(1, BAND_PIXELS // across)
    for begin in range(0, length, step):
        yield begin, min(begin + step, length)


def _resize_width(image: Image.Image, side: Side, resample: str, color: Color) -> Image.Image:
    """Return the image with its width resized."""
    out = Image.new("RGB", (side.keep, image.height))
    for top, bottom in _bands(image.height, max(side.total, side.size)):
        band = image.crop((0, top, image.width, bottom))
        if side.total != image.width:
            padded = Image.new("RGB", (side.total, bottom - top), color)
            padded.paste(band, (side.before, 0))
            band = padded
        band = band.resize((side.size, bottom - top), Image.Resampling[resample.upper()])
        out.paste(band.crop((side.first, 0, side.first + side.keep, bottom - top)), (0, top))
    return out


def _resize_height(image: Image.Image, side: Side, resample: str, color: Color) -> Image.Image:
    """Return the image with its height resized."""
    out = Image.new("RGB", (image.width, side.keep))
    for left, right in _bands(image.width, max(side.total, side.size)):
        band = image.crop((left, 0, right, image.height))
        if side.total != image.height:
            padded = Image.new("RGB", (right - left, side.total), color)
            padded.paste(band, (0, side.before))
            band = padded
        band = band.resize((right - left, side.size), Image.Resampling[resample.upper()])
        out.paste(band.crop((0, side.first, right - left, side.first + side.keep)), (left, 0))
    return out


def _resize_width_with_much_padding(image: Image.Image, side: Side, resample: str, color: Color) -> Image.Image:
    """Return the image with its width resized, by Pillow's arithmetic and without its padding.

    Sums are exact: weights are integers below 2^23 and samples have 8 bits, and float64 holds all sums of them.
    """
    out = Image.new("RGB", (side.keep, image.height))
    columns = [_weights(side, x, image.width, resample, color) for x in range(side.first, side.first + side.keep)]
    for top, bottom in _bands(image.height, 8 * max(image.width, side.keep)):
        pixels = np.asarray(image.crop((0, top, image.width, bottom)))
        channels = np.ascontiguousarray(pixels.transpose(0, 2, 1), dtype=np.float64)
        sums = np.empty((bottom - top, side.keep, 3), dtype=np.int64)
        for x, (begin, inside, padding) in enumerate(columns):
            sums[:, x] = channels[:, :, begin : begin + len(inside)] @ inside + padding
        samples = (sums + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS
        out.paste(Image.fromarray(samples.clip(0, 255).astype(np.uint8)), (0, top))
    return out


def _weights(side: Side, out: int, length: int, resample: str, color: Color) -> tuple[int, np.ndarray, np.ndarray]:
    """Return how Pillow makes one sample of a resized side: the weights of the image's samples, and where they begin.

    The last value is what the padding adds to each channel.
    """
    first, integers = weights(resample, out, total=side.total, size=side.size)
    end = first + len(integers)
    begin, stop = (min(max(edge, first), end) for edge in (side.before, side.before + length))
    inside = integers[begin - first : stop - first]
    padding = (integers.sum() - inside.sum()) * np.array(color, dtype=np.float64)
    return max(begin - side.before, 0), inside, padding
