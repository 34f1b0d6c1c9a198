"""Pictures for the vision encoder: reading any file, and the two ways LLaVA models make a square of it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from llava_runner.contract import MIN_IMAGE_SIDE
from llava_runner.errors import ImageError

if TYPE_CHECKING:
    import torch

IMAGE_ASPECT_RATIOS = ("pad", "crop")
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels, as in a browser


def load_image(path: str | Path) -> Image.Image | np.ndarray:
    """Read a picture as RGB, or a ``.pt`` file as uint8 ``[3, H, W]``.

    Raises ``ImageError`` when the file is missing, damaged, larger than Pillow's limit, or less than 2 pixels wide
    or high.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path} does not exist")
    if path.suffix == ".pt":
        return _load_tensor(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path} is too large: {error}") from error
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes their parsers trip over
        raise ImageError(f"{path} is not a picture that can be read: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any Pillow image upright and into 8-bit RGB.

    EXIF orientation is applied, transparency is laid on white, 16-bit gray is scaled down, and of an animation the
    current frame counts. Raises ``ImageError`` for sides below ``MIN_IMAGE_SIDE`` and for floating-point pixels.
    """
    _check_sides(image.width, image.height)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no set range; save the picture with 8 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would clip at 255 instead of scaling; both modes hold 16-bit gray.
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
    """Whatever a caller has -> uint8 ``[3, H, W]`` for the vision encoder.

    Files and pictures go through ``preprocess``. Tensors and arrays (and ``.pt`` files) must be uint8 ``[3, H, W]``
    with sides from ``MIN_IMAGE_SIDE`` to ``image_size``; they are taken as they are. Raises ``ImageError``.
    """
    if isinstance(image, (str, Path)):
        image = load_image(image)
    if isinstance(image, Image.Image):
        return preprocess(
            to_rgb(image), image_size=image_size, image_mean=image_mean, image_aspect_ratio=image_aspect_ratio
        )
    pixels = _check_pixels(np.asarray(image))
    _, height, width = pixels.shape
    if max(height, width) > image_size:
        raise ImageError(
            f"the image tensor has {width}x{height} pixels and the model sees {image_size}x{image_size}; "
            "give the picture itself, or a tensor resized to fit"
        )
    return pixels


def preprocess(
    image: Image.Image, *, image_size: int, image_mean: Sequence[float], image_aspect_ratio: str
) -> np.ndarray:
    """RGB picture -> uint8 ``[3, image_size, image_size]``, exactly as the model's training did it.

    ``"pad"``: to a square with the mean color, then bicubic to size (the original LLaVA, MobileVLM). ``"crop"``: the
    shorter edge to size, bicubic, then the center square (Hugging Face's ``CLIPImageProcessor``). Raises
    ``ImageError`` when the picture is so thin that it would vanish.
    """
    _check_aspect(image, image_size)
    if image_aspect_ratio == "pad":
        square = _pad_to_square(image, color=tuple(int(channel * 255) for channel in image_mean))
        image = _resize(square, image_size, image_size)
    elif image_aspect_ratio == "crop":
        image = _crop_to_square(image, image_size)
    else:
        raise ImageError(f"image_aspect_ratio {image_aspect_ratio!r}: choose from {', '.join(IMAGE_ASPECT_RATIOS)}")
    return _to_pixels(image)


def fit(image: Image.Image, *, image_size: int) -> np.ndarray:
    """Resize so that the longer side is ``image_size``, the aspect kept -> uint8 ``[3, H, W]``.

    Padding is left to the vision encoder. Raises ``ImageError`` as ``preprocess`` does.
    """
    image = to_rgb(image)
    _check_aspect(image, image_size)
    longer = max(image.size)
    width, height = (max(MIN_IMAGE_SIDE, round(side * image_size / longer)) for side in image.size)
    return _to_pixels(_resize(image, width, height))


def _pad_to_square(image: Image.Image, *, color: tuple[int, ...]) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _crop_to_square(image: Image.Image, image_size: int) -> Image.Image:
    shorter = min(image.size)
    # Truncated, not rounded, and the offsets floored: CLIPImageProcessor's arithmetic.
    width, height = (int(image_size * side / shorter) for side in image.size)
    image = _resize(image, width, height)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return image.crop((left, top, left + image_size, top + image_size))


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic, the width first: Pillow before 13 always did so; now it begins with the axis that makes less work, and
    what is rounded in between differs."""
    return image.resize((width, image.height), Image.Resampling.BICUBIC).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def _to_pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _load_tensor(path: Path) -> np.ndarray:
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and storage errors alike: no tensor in there
        raise ImageError(f"{path} is not a tensor written by torch.save") from error
    if not isinstance(tensor, torch.Tensor):
        raise ImageError(f"{path} holds a {type(tensor).__name__}, not an image tensor")
    try:
        return _check_pixels(np.asarray(tensor))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _check_pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] != 3:
        shape = ", ".join(map(str, pixels.shape))
        raise ImageError(f"an image tensor is uint8 [3, H, W]; this one is {pixels.dtype} [{shape}]")
    _check_sides(pixels.shape[2], pixels.shape[1])
    return pixels


def _check_sides(width: int, height: int) -> None:
    if min(width, height) < MIN_IMAGE_SIDE:
        raise ImageError(f"{width}x{height} pixels is too small; each side needs at least {MIN_IMAGE_SIDE}")


def _check_aspect(image: Image.Image, image_size: int) -> None:
    if min(image.size) * image_size < MIN_IMAGE_SIDE * max(image.size):
        raise ImageError(
            f"{image.width}x{image.height} pixels is too thin: scaled to {image_size} pixels its shorter side "
            f"would be less than {MIN_IMAGE_SIDE} pixels"
        )
