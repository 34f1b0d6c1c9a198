"""Squares for the vision encoder: padded or cropped, and resized bicubically as Pillow does it.

Padding is never stored, so memory and time are bound by the image and not by its longer side squared. A row or column
that lies in the padding keeps its color when it is resized, so only those with a part of the image are computed, a band
at a time. The result is that of resizing the padded image, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

Color = tuple[int, int, int]

BAND_PIXELS = 1 << 20  # of a band, at most, if a row or column is not longer
# Pillow resizes rows with their padding as long as they are at most so many times longer than the image's.
MOST_PADDING = 4
PRECISION_BITS = 32 - 8 - 2  # after the point of Pillow's weights


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


def padded_square(image: Image.Image, *, image_size: int, color: Color) -> Image.Image:
    """Return an RGB image padded to a square with a color, half on either side, and resized to ``image_size``."""
    total = max(image.size)
    width, height = (Side(total, image_size, image_size, before=(total - side) // 2) for side in image.size)
    return _resize(image, width, height, color)


def center_square(image: Image.Image, *, image_size: int) -> Image.Image:
    """Return the center square of an RGB image whose shorter side was resized to ``image_size``."""
    shorter = min(image.size)
    # CLIPImageProcessor truncates the sides instead of rounding them, and rounds the offsets down.
    sizes = (int(image_size * side / shorter) for side in image.size)
    width, height = (
        Side(total, size, image_size, first=(size - image_size) // 2)
        for total, size in zip(image.size, sizes, strict=True)
    )
    return _resize(image, width, height)


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return an RGB image in another size."""
    return _resize(image, Side(image.width, width, width), Side(image.height, height, height))


def _resize(image: Image.Image, width: Side, height: Side, color: Color = (0, 0, 0)) -> Image.Image:
    """Return an image resized first along its width, then along its height.

    Pillow before version 13 always did so. Newer versions begin with the side that makes less work, and as the pixels
    are rounded in between, the result differs.
    """
    if width.total > MOST_PADDING * image.width:
        return _resize_height(_resize_width_with_much_padding(image, width, color), height, color)
    return _resize_height(_resize_width(image, width, color), height, color)


def _bands(length: int, across: int) -> Iterator[tuple[int, int]]:
    """Yield where bands of rows (or columns) begin and end; each row takes ``across`` pixels."""
    step = max(1, BAND_PIXELS // across)
    for begin in range(0, length, step):
        yield begin, min(begin + step, length)


def _resize_width(image: Image.Image, side: Side, color: Color) -> Image.Image:
    """Return the image with its width resized."""
    out = Image.new("RGB", (side.keep, image.height))
    for top, bottom in _bands(image.height, max(side.total, side.size)):
        band = image.crop((0, top, image.width, bottom))
        if side.total != image.width:
            padded = Image.new("RGB", (side.total, bottom - top), color)
            padded.paste(band, (side.before, 0))
            band = padded
        band = band.resize((side.size, bottom - top), Image.Resampling.BICUBIC)
        out.paste(band.crop((side.first, 0, side.first + side.keep, bottom - top)), (0, top))
    return out


def _resize_height(image: Image.Image, side: Side, color: Color) -> Image.Image:
    """Return the image with its height resized."""
    out = Image.new("RGB", (image.width, side.keep))
    for left, right in _bands(image.width, max(side.total, side.size)):
        band = image.crop((left, 0, right, image.height))
        if side.total != image.height:
            padded = Image.new("RGB", (right - left, side.total), color)
            padded.paste(band, (0, side.before))
            band = padded
        band = band.resize((right - left, side.size), Image.Resampling.BICUBIC)
        out.paste(band.crop((0, side.first, right - left, side.first + side.keep)), (left, 0))
    return out


def _resize_width_with_much_padding(image: Image.Image, side: Side, color: Color) -> Image.Image:
    """Return the image with its width resized, by Pillow's arithmetic and without its padding.

    Sums are exact: weights are integers below 2^23 and samples have 8 bits, and float64 holds all sums of them.
    """
    out = Image.new("RGB", (side.keep, image.height))
    columns = [_weights(side, x, image.width, color) for x in range(side.first, side.first + side.keep)]
    for top, bottom in _bands(image.height, 8 * max(image.width, side.keep)):
        pixels = np.asarray(image.crop((0, top, image.width, bottom)))
        channels = np.ascontiguousarray(pixels.transpose(0, 2, 1), dtype=np.float64)
        sums = np.empty((bottom - top, side.keep, 3), dtype=np.int64)
        for x, (begin, weights, padding) in enumerate(columns):
            sums[:, x] = channels[:, :, begin : begin + len(weights)] @ weights + padding
        samples = (sums + (1 << (PRECISION_BITS - 1))) >> PRECISION_BITS
        out.paste(Image.fromarray(samples.clip(0, 255).astype(np.uint8)), (0, top))
    return out


def _weights(side: Side, out: int, length: int, color: Color) -> tuple[int, np.ndarray, np.ndarray]:
    """Return how Pillow makes one sample of a resized side: the weights of the image's samples, and where they begin.

    The last value is what the padding adds to each channel. Source: ``precompute_coeffs`` in Pillow's Resample.c.
    """
    scale = side.total / side.size
    stretch = max(scale, 1.0)
    center = (out + 0.5) * scale
    first = max(int(center - 2 * stretch + 0.5), 0)
    end = min(int(center + 2 * stretch + 0.5), side.total)
    x = np.abs((np.arange(first, end) - center + 0.5) * (1.0 / stretch))
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    total = np.add.accumulate(weights)[-1]  # in order, as in C; sum() adds in pairs
    scaled = (weights / total if total != 0 else weights) * (1 << PRECISION_BITS)
    integers = np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5))
    begin, stop = (min(max(edge, first), end) for edge in (side.before, side.before + length))
    inside = integers[begin - first : stop - first]
    padding = (integers.sum() - inside.sum()) * np.array(color, dtype=np.float64)
    return max(begin - side.before, 0), inside, padding
