"""Pillow images of any kind, made upright and 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image

from llava_runner.errors import ImageError
from llava_runner.image.quiet import without_warnings

BACKGROUND = (255, 255, 255)  # behind transparent pixels, as in a browser
BAND_PIXELS = 1 << 20  # converted at once where it takes several copies
# What turns an image upright, by its orientation (EXIF 2.3, tag 0x0112). 1 is upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF or XMP data says, without that data; or itself, if there is nothing to turn.

    An image whose metadata is malformed stays as it is.
    """
    try:
        with without_warnings():
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # Pillow raises all kinds of exceptions
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        turned.info.pop(key, None)
    return turned


def opaque_rgb(image: Image.Image) -> Image.Image:
    """Return the image in 8-bit RGB. Transparent pixels are laid on white, and 16-bit gray is scaled to 8 bits.

    Raises ``ImageError`` for floating-point pixels.
    """
    if image.mode == "F":
        raise ImageError("floating-point pixels have no set range; save the image with 8 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    if not _may_be_transparent(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    out = Image.new("RGB", image.size)
    for top, band in _bands(image):
        band = band.convert("RGBA")
        background = Image.new("RGBA", band.size, (*BACKGROUND, 255))
        out.paste(Image.alpha_composite(background, band).convert("RGB"), (0, top))
    return out


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield bands of rows, each with the row it begins at."""
    step = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, step):
        yield top, image.crop((0, top, image.width, min(top + step, image.height)))


def _may_be_transparent(image: Image.Image) -> bool:
    """Return True for an image with an alpha channel, a palette with one, or a transparent color."""
    if image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"):
        return True
    return image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as RGB. Pillow's own conversion clips at 255 instead of scaling."""
    key = image.info.get("transparency")
    out = Image.new("RGB", image.size)
    for top, band in _bands(image):
        samples = np.asarray(band).clip(0, 65535)
        gray = (samples // 257).astype(np.uint8)
        if isinstance(key, int):
            gray[samples == key] = BACKGROUND[0]
        out.paste(Image.fromarray(gray).convert("RGB"), (0, top))
    return out
