"""Turning images upright, and their memory."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from llava_runner.image import colors, load_image, prepare_image, to_rgb
from llava_runner.image.quiet import without_warnings

XMP = b'<x:xmpmeta><d tiff:Orientation="6"/></x:xmpmeta>'


def photograph(kind="JPEG", **options):
    """Return the bytes of a file: red on the left, blue on the right, wider than high."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = pixels[:, 20:, 2] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def six():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("options", [{"exif": six()}, {"xmp": XMP}, {"exif": six(), "xmp": XMP}])
def test_an_image_is_turned_once(options, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(photograph(**options))
    loaded = load_image(tmp_path / "photo.jpg")
    assert isinstance(loaded, Image.Image)
    for image in (loaded, to_rgb(loaded), to_rgb(to_rgb(Image.open(tmp_path / "photo.jpg")))):
        assert image.size == (20, 40)
        pixels = np.asarray(image)
        assert pixels[5, 10, 0] > 200 and pixels[35, 10, 2] > 200


def test_every_orientation_is_that_of_pillow():
    from PIL import ImageOps

    for value in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = value
        image = Image.open(io.BytesIO(photograph("PNG", exif=exif)))
        assert to_rgb(image).tobytes() == ImageOps.exif_transpose(image).tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0XX\0*\0\0\0\x08", b"Exif\0\0MM\0*", b"Exif\0\0"])
def test_malformed_metadata_leaves_an_image_as_it_is_stored(exif, recwarn):
    content = photograph()
    content = content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]
    found = prepare_image(content, image_size=40, image_mean=(0.5, 0.5, 0.5), image_aspect_ratio="pad")
    expected = prepare_image(photograph(), image_size=40, image_mean=(0.5, 0.5, 0.5), image_aspect_ratio="pad")
    np.testing.assert_array_equal(found, expected)
    assert len(recwarn) == 0


def test_threads_that_overlap_restore_the_filters_of_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = without_warnings(), without_warnings()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        warnings.warn("the second still ignores it", stacklevel=1)
        second.__exit__(None, None, None)
        with pytest.raises(UserWarning):
            warnings.warn("this is an error again", stacklevel=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_bands_do_not_show(mode, monkeypatch):
    samples = np.random.default_rng(0).integers(0, 256, (30, 41, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(samples[..., 0].astype(np.uint16) * 257)
        image.info["transparency"] = int(samples[4, 4, 0]) * 257
    else:
        image = Image.fromarray(samples).convert(mode)
        if mode == "P":
            image.info["transparency"] = bytes(range(256))
    expected = to_rgb(image).tobytes()
    monkeypatch.setattr(colors, "BAND_PIXELS", 100)
    assert to_rgb(image).tobytes() == expected


def test_a_transparent_gray_of_16_bits_becomes_white():
    image = Image.fromarray(np.full((4, 4), 100 * 257, np.uint16))
    image.putpixel((1, 1), 100 * 257 + 1)
    image.info["transparency"] = 100 * 257 + 1
    assert to_rgb(image).getpixel((1, 1)) == (255, 255, 255)
    assert to_rgb(image).getpixel((0, 0)) == (100, 100, 100)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_memory_is_at_most_three_times_the_images(mode, tmp_path):
    """The image is turned, transparent, and in several copies at once."""
    image = Image.effect_noise((600, 400), 90).resize((6000, 4000), Image.Resampling.NEAREST).convert(mode)
    if mode == "RGBA":
        image.putalpha(100)
    content = {"P": b"\xff" * 100 + bytes(156)}.get(mode)
    image.save(tmp_path / "photo.png", compress_level=1, exif=six(), transparency=content)
    code = f"""
from llava_runner.image import prepare_image
from llava_runner.timings import peak_memory
before = peak_memory()
prepare_image({str(tmp_path / "photo.png")!r}, image_size=336, image_mean=(0.5, 0.5, 0.5), image_aspect_ratio="pad")
print(peak_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * 6000 * 4000 * 3
