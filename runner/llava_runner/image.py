"""Images for the vision encoder: read from a file, and made square.

The runner pads or crops files and Pillow images to a square (``preprocess``). Tensors and arrays, and the ``image.pt``
of a package, go to the vision encoder as they are, and are padded to a square inside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from llava_runner.contract import MIN_IMAGE_SIDE
from llava_runner.errors import ImageError
from llava_runner.resize import center_square, padded_square, resized
from llava_runner.tensor_file import check_pixels, check_sides, load_tensor

if TYPE_CHECKING:
    import torch

IMAGE_ASPECT_RATIOS = ("pad", "crop")
BACKGROUND = (255, 255, 255)  # behind transparent pixels, as in a browser


def load_image(path: str | Path) -> Image.Image | np.ndarray:
    """Return the RGB image in a file, or the tensor ``uint8 [3, H, W]`` in a ``.pt`` file.

    Raises ``ImageError`` if the file is missing, damaged, larger than Pillow's limit, or less than ``MIN_IMAGE_SIDE``
    pixels wide or high.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path} does not exist")
    if path.suffix == ".pt":
        return load_tensor(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large: {error}") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise all kinds of exceptions for damaged files
        raise ImageError(f"{path} is not an image that can be read: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any Pillow image upright and in 8-bit RGB.

    EXIF orientation is applied, transparent pixels are laid on white, and 16-bit gray is scaled to 8 bits. Of an
    animation, the current frame is taken. Raises ``ImageError`` for sides below ``MIN_IMAGE_SIDE`` and for
    floating-point pixels.
    """
    check_sides(image.width, image.height)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no set range; save the image with 8 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Both modes hold 16-bit gray. Pillow's own conversion clips at 255 instead of scaling.
        samples = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((samples // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def prepare_image(
    image: str | Path | Image.Image | np.ndarray | torch.Tensor,
    *,
    image_size: int,
    image_mean: Sequence[float],
    image_aspect_ratio: str,
) -> np.ndarray:
    """Return any kind of image as ``uint8 [3, H, W]`` for the vision encoder.

    Files and Pillow images become squares, by ``preprocess``. Tensors, arrays and ``.pt`` files must be
    ``uint8 [3, H, W]`` with sides from ``MIN_IMAGE_SIDE`` to ``image_size``, and are returned as they are: the vision
    encoder pads them (see the top of this file). Raises ``ImageError``.
    """
    if isinstance(image, (str, Path)):
        image = load_image(image)
    if isinstance(image, Image.Image):
        return preprocess(
            to_rgb(image), image_size=image_size, image_mean=image_mean, image_aspect_ratio=image_aspect_ratio
        )
    pixels = check_pixels(np.asarray(image))
    _, height, width = pixels.shape
    if max(height, width) > image_size:
        raise ImageError(
            f"the image tensor has {width}x{height} pixels and the model sees {image_size}x{image_size}; "
            "give the image itself, or a tensor resized to fit"
        )
    return pixels


def preprocess(
    image: Image.Image, *, image_size: int, image_mean: Sequence[float], image_aspect_ratio: str
) -> np.ndarray:
    """Return an RGB image as ``uint8 [3, image_size, image_size]``, exactly as it was done when the model was trained.

    ``"pad"``: pad to a square with the mean color, then resize (original LLaVA, MobileVLM). ``"crop"``: resize the
    shorter side to ``image_size``, then crop to the center square (Hugging Face's ``CLIPImageProcessor``). Both resize
    bicubically. Raises ``ImageError`` if the shorter side would become less than ``MIN_IMAGE_SIDE`` pixels.
    """
    _check_aspect(image, image_size)
    if image_aspect_ratio == "pad":
        red, green, blue = (int(channel * 255) for channel in image_mean)
        image = padded_square(image, image_size=image_size, color=(red, green, blue))
    elif image_aspect_ratio == "crop":
        image = center_square(image, image_size=image_size)
    else:
        raise ImageError(f"image_aspect_ratio {image_aspect_ratio!r}: choose from {', '.join(IMAGE_ASPECT_RATIOS)}")
    return _to_pixels(image)


def fit(image: Image.Image, *, image_size: int) -> np.ndarray:
    """Return an image as ``uint8 [3, H, W]``, resized so that its longer side is ``image_size``.

    The aspect ratio is kept, and the vision encoder pads the rest. Raises ``ImageError`` as ``preprocess`` does.
    """
    image = to_rgb(image)
    _check_aspect(image, image_size)
    longer = max(image.size)
    width, height = (max(MIN_IMAGE_SIDE, round(side * image_size / longer)) for side in image.size)
    return _to_pixels(resized(image, width, height))


def _to_pixels(image: Image.Image) -> np.ndarray:
    """Return an RGB image as ``uint8 [3, H, W]``."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _check_aspect(image: Image.Image, image_size: int) -> None:
    """Raise ``ImageError`` if the shorter side is below ``MIN_IMAGE_SIDE`` when the longer is ``image_size``."""
    if min(image.size) * image_size < MIN_IMAGE_SIDE * max(image.size):
        raise ImageError(
            f"{image.width}x{image.height} pixels is too thin: scaled to {image_size} pixels its shorter side "
            f"would be less than {MIN_IMAGE_SIDE} pixels"
        )
