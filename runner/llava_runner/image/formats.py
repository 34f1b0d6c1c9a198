"""The file formats of images: known by their first bytes, and decoded by Pillow within limits."""

from __future__ import annotations

from typing import BinaryIO

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    features,
)

from llava_runner.errors import ImageError
from llava_runner.image.jpeg import open_jpeg
from llava_runner.image.limits import check_size, most_pixels
from llava_runner.image.png import without_long_texts
from llava_runner.image.ppm import decode_ppm
from llava_runner.image.quiet import without_warnings

HEAD_BYTES = 64  # by which a format is known
FORMATS = (
    ("JPEG", 0, (b"\xff\xd8\xff",)),
    ("PNG", 0, (b"\x89PNG\r\n\x1a\n",)),
    ("WebP", 8, (b"WEBP",)),
    ("GIF", 0, (b"GIF87a", b"GIF89a")),
    ("BMP", 0, (b"BM",)),
    ("TIFF", 0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")),
    ("PPM", 0, tuple(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \t\n\v\f\r")),
)
AVIF_BRANDS = (b"avif", b"avis")  # among the names of formats that a file begins with
# What people try, too, and what to do about it. The first that fits counts.
SAVE = "save it as JPEG or PNG"
OTHERS = (
    (
        4,
        tuple(b"ftyp" + brand for brand in b"heic heix heim heis hevc hevx hevm hevs mif1 msf1".split()),
        "a HEIC image",
        SAVE,
    ),
    (4, (b"ftyp", b"moov", b"mdat", b"wide"), "a video", "save one of its frames as JPEG or PNG"),
    (0, (b"\x1aE\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba"), "a video", "save one of its frames as JPEG or PNG"),
    (8, (b"AVI ",), "a video", "save one of its frames as JPEG or PNG"),
    (0, (b"%PDF",), "a PDF", "save the page as JPEG or PNG"),
    (0, (b"%!PS", b"\xc5\xd0\xd3\xc6"), "PostScript", SAVE),
    (0, (b"<svg", b"<?xml"), "SVG or other XML", SAVE),
    (0, (b"<!DOCTYPE", b"<!doctype", b"<html"), "a web page", "download the image itself"),
    (0, (b"8BPS",), "a Photoshop image", SAVE),
    (0, (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000 image", SAVE),
    (0, (b"\x00\x00\x00\x0cJXL ", b"\xff\x0a"), "a JPEG XL image", SAVE),
    (0, (b"Pf", b"PF", b"P7"), "a PFM or PAM image", "save it as PPM, JPEG or PNG"),
    (0, (b"\x00\x00\x01\x00",), "an icon", SAVE),
    (0, (b"PK\x03\x04",), "a ZIP archive", "unpack it; the name of a file with a tensor must end in .pt"),
)
PLUGINS = {
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}


def format_of(head: bytes, name: str) -> str:
    """Return the format of a file by its first ``HEAD_BYTES`` bytes. Raises ``ImageError`` for one that is not read."""
    for found, offset, beginnings in FORMATS:
        if head.startswith(beginnings, offset):
            return found
    if head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]):  # the brands of the file
        if not features.check("avif"):
            raise cannot_be_read(name, f"it is an AVIF image; {SAVE}")
        return "AVIF"
    if not head:
        raise cannot_be_read(name, "it is empty")
    for offset, beginnings, what, advice in OTHERS:
        if head.startswith(beginnings, offset):
            raise cannot_be_read(name, f"it is {what}; {advice}")
    raise cannot_be_read(name, "it is neither JPEG nor PNG, WebP, GIF, BMP, TIFF or PPM")


def cannot_be_read(name: str, why: object) -> ImageError:
    """Return the error for a file that is not an image that can be read."""
    return ImageError(f"{name} is not an image that can be read: {why}")


def decode(stream: BinaryIO, *, kind: str, name: str) -> Image.Image:
    """Return the image in a file of a format: decoded, of any mode, as it is stored. Of an animation, the first frame.

    A JPEG of more than ``MAX_PIXELS`` is decoded at a half, a quarter or an eighth of its size. Raises ``ImageError``.
    """
    size = None
    try:
        with without_warnings():
            stream.seek(0)
            image = _open(stream, kind, name)
            size = image.size
            check_size(name, *size)
            return _load(image, stream, kind)
    except ImageError:
        raise
    except MemoryError as error:
        pixels = f"{size[0]}x{size[1]} pixels" if size else "it"
        raise ImageError(f"{name}: there is not enough memory for {pixels}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large; at most {most_pixels()} pixels are read") from error
    except Exception as error:  # Pillow's decoders raise all kinds of exceptions for damaged files
        raise cannot_be_read(name, error or type(error).__name__) from error


def _open(stream: BinaryIO, kind: str, name: str) -> Image.Image:
    """Return the image of a file, not yet decoded."""
    if kind == "JPEG":
        return open_jpeg(stream, name)
    if kind == "PPM":
        return PpmImagePlugin.PpmImageFile(stream)
    if kind != "PNG":
        return PLUGINS[kind](stream)
    try:
        return PngImagePlugin.PngImageFile(stream)
    except ValueError as error:
        return PngImagePlugin.PngImageFile(_shortened(stream, error))


def _load(image: Image.Image, stream: BinaryIO, kind: str) -> Image.Image:
    """Decode an image."""
    if kind == "PPM":
        return decode_ppm(image, stream)
    if kind == "PNG" and any(tile.extents != (0, 0, *image.size) for tile in image.tile):  # type: ignore[attr-defined]
        raise ValueError("the first frame of the animation does not cover it")
    try:
        image.load()
    except ValueError as error:
        if kind != "PNG":
            raise
        image = PngImagePlugin.PngImageFile(_shortened(stream, error))
        image.load()
    return image


def _shortened(stream: BinaryIO, error: ValueError) -> BinaryIO:
    """Return a PNG without its long texts. Raises the error of Pillow if they are not what it was about."""
    if "MAX_TEXT" not in str(error):
        raise error
    return without_long_texts(stream)
