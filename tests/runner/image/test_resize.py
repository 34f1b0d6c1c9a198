"""Padding that is never stored gives the bytes of padding by hand, and memory goes with the image."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from llava_runner.contract import IMAGE_ASPECT_RATIOS, RESAMPLES
from llava_runner.image import resize
from llava_runner.image.resize import Square, center_square, padded_square, stretched_square

COLOR = (122, 116, 104)
# Wide and tall, with little and much padding, sides that are scaled up, and one that keeps its size.
SIZES = [(640, 480), (480, 640), (57, 300), (3, 290), (290, 3), (1500, 90), (90, 1500), (112, 40), (40, 112), (9, 2)]

HOW = [(5000, "bicubic"), *((resize.BAND_PIXELS, resample) for resample in RESAMPLES)]


def noise(width, height):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def resized(image, width, height, resample):
    """Return the image resized by Pillow alone, first the width and then the height."""
    for size in ((width, image.height), (width, height)):
        image = image.resize(size, Image.Resampling[resample.upper()])
    return image


def center(image, size):
    """Return the center square of an image."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


@pytest.mark.parametrize(("band", "resample"), HOW)
@pytest.mark.parametrize("size", SIZES)
def test_padding_is_as_if_it_were_stored(size, band, resample, monkeypatch):
    monkeypatch.setattr(resize, "BAND_PIXELS", band)
    image = noise(*size)
    side = max(size)
    square = Image.new("RGB", (side, side), COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    for image_size, image_resize in ((112, 112), (336, 336), (112, 131)):
        expected = center(resized(square, image_resize, image_resize, resample), image_size)
        found = padded_square(image, square=Square(image_size, image_resize, resample), color=COLOR)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("band", "resample"), HOW)
@pytest.mark.parametrize("size", SIZES)
def test_only_the_center_is_resized(size, band, resample, monkeypatch):
    monkeypatch.setattr(resize, "BAND_PIXELS", band)
    for image_resize in (112, 131):
        square = Square(112, image_resize, resample)
        width, height = (int(image_resize * side / min(size)) for side in size)
        expected = center(resized(noise(*size), width, height, resample), 112)
        assert center_square(noise(*size), square=square).tobytes() == expected.tobytes()
        expected = center(resized(noise(*size), image_resize, image_resize, resample), 112)
        assert stretched_square(noise(*size), square=square).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(30000, 600), (600, 30000)])
@pytest.mark.parametrize("how", IMAGE_ASPECT_RATIOS)
def test_memory_goes_with_the_image(size, how):
    """Its 18 million pixels take 69 MiB; a square with its longer side would take 3.4 GiB."""
    code = f"""
from PIL import Image
from llava_runner.image import preprocess
from llava_runner.timings import peak_memory
image = Image.new("RGB", {size})
before = peak_memory()
preprocess(image, image_size=336, image_mean=(0.5, 0.5, 0.5), image_aspect_ratio={how!r})
print(peak_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 20
