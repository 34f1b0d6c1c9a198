"""Images for the vision encoder: read from a file, and made square.

The runner pads, crops or stretches files and Pillow images to a square (``preprocess``). Tensors and arrays
``[3, H, W]``, and the ``image.pt`` of a package, go to the vision encoder as they are, and are padded to a square
inside it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from llava_runner.contract import IMAGE_ASPECT_RATIOS, MIN_IMAGE_SIDE, ModelCard
from llava_runner.errors import ImageError
from llava_runner.image.colors import opaque_rgb, upright
from llava_runner.image.formats import decode
from llava_runner.image.limits import check_sides
from llava_runner.image.resize import Square, center_square, padded_square, resized, stretched_square
from llava_runner.image.source import opened, path_of, whole
from llava_runner.image.tensor_file import check_pixels, load_tensor

if TYPE_CHECKING:
    import torch


def load_image(path: str | os.PathLike[Any]) -> Image.Image | np.ndarray:
    """Return the RGB image in a file, or the tensor ``uint8 [3, H, W]`` in a ``.pt`` file.

    A pipe is a file, too. A JPEG of more than ``MAX_PIXELS`` is returned at a half, a quarter or an eighth of its size.
    Raises ``ImageError`` if the file is missing, damaged, no image, too large, or less than ``MIN_IMAGE_SIDE`` pixels
    wide or high.
    """
    path = path_of(path)
    if path.suffix.lower() == ".pt":
        return load_tensor(path)
    with opened(path) as (stream, kind):
        return _rgb(decode(stream, kind=kind, name=str(path)), f"{path}: ", is_ours=True)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any Pillow image upright and in 8-bit RGB.

    Orientation in EXIF or XMP data is applied, transparent pixels are laid on white, and 16-bit gray is scaled to 8
    bits. Of an animation, the current frame is taken. Raises ``ImageError`` for sides below ``MIN_IMAGE_SIDE``, for
    floating-point pixels, and for an image that is closed or damaged.
    """
    return _rgb(image, "", is_ours=False)


def _rgb(image: Image.Image, name: str, *, is_ours: bool) -> Image.Image:
    """Return a Pillow image upright and in 8-bit RGB. Raises ``ImageError``, whose message begins with a name.

    ``is_ours`` says that nobody else uses the image, so that its memory can be freed once it is turned.
    """
    try:
        check_sides(image.width, image.height)
        image.load()
        turned = upright(image)
        if is_ours and turned is not image:
            image.close()
        return opaque_rgb(turned)
    except ImageError as error:
        raise ImageError(f"{name}{error}") from error
    except MemoryError as error:
        raise ImageError(f"{name}there is not enough memory for {image.width}x{image.height} pixels") from error
    except Exception as error:  # Pillow raises all kinds of exceptions
        why = str(error) or "it is damaged, or was closed before its pixels were read"
        raise ImageError(f"{name}the image of mode {image.mode} cannot be read: {why}") from error


def prepare_image(
    image: str | os.PathLike[Any] | bytes | bytearray | memoryview | Image.Image | np.ndarray | torch.Tensor | Any,
    *,
    image_size: int,
    image_mean: Sequence[float],
    image_aspect_ratio: str,
    image_resize: int | None = None,
    image_resample: str = "bicubic",
) -> np.ndarray:
    """Return any kind of image as ``uint8 [3, H, W]`` for the vision encoder.

    Paths, the bytes of a file, files that are open in binary mode, Pillow images, and arrays ``uint8 [H, W, 3]`` become
    squares, by ``preprocess``. Tensors, arrays and ``.pt`` files with ``uint8 [3, H, W]`` and sides from
    ``MIN_IMAGE_SIDE`` to ``image_size`` are returned as they are: the vision encoder pads them (see the top of this
    file). An array ``[3, W, 3]`` is taken as ``[3, H, W]``. Raises ``ImageError``, and nothing else.
    """
    found = _image_or_pixels(image)
    if isinstance(found, Image.Image):
        return preprocess(
            to_rgb(found),
            image_size=image_size,
            image_mean=image_mean,
            image_aspect_ratio=image_aspect_ratio,
            image_resize=image_resize,
            image_resample=image_resample,
        )
    _, height, width = found.shape
    if max(height, width) > image_size:
        raise ImageError(
            f"the image tensor has {width}x{height} pixels and the model sees {image_size}x{image_size}; "
            "give the image itself, or a tensor resized to fit"
        )
    return found


def prepare_image_for(card: ModelCard, image: Any, *, image_aspect_ratio: str | None = None) -> np.ndarray:
    """Return any kind of image as ``prepare_image`` does, in the way of the card's model.

    ``image_aspect_ratio`` replaces the card's. Raises ``ImageError``.
    """
    return prepare_image(
        image,
        image_size=card.image_size,
        image_mean=card.image_mean,
        image_aspect_ratio=image_aspect_ratio or card.image_aspect_ratio,
        image_resize=card.image_resize,
        image_resample=card.image_resample,
    )


def _image_or_pixels(image: Any) -> Image.Image | np.ndarray:
    """Return a Pillow image, or an image tensor ``uint8 [3, H, W]``. Raises ``ImageError``."""
    if isinstance(image, (str, os.PathLike)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, (bytes, bytearray, memoryview)):
        image = io.BytesIO(bytes(image))
    if hasattr(image, "read"):
        name = getattr(image, "name", None)
        name = name if isinstance(name, str) else "the image"
        stream, kind = whole(image, name)
        return _rgb(decode(stream, kind=kind, name=name), f"{name}: ", is_ours=True)
    try:
        if hasattr(image, "detach"):  # a tensor of torch
            image = image.detach().cpu()
        pixels = np.asarray(image)
    except Exception as error:
        raise ImageError(f"the {_described(image)} cannot be read as an image: {error}") from error
    if pixels.dtype == np.object_ or pixels.dtype.kind in "USmM" or pixels.ndim == 0:
        raise ImageError(
            "an image is a path, bytes, an open file, a Pillow image, or an array or tensor; "
            f"this is of type {type(image).__name__}"
        )
    if isinstance(image, np.ndarray) and pixels.shape[2:] == (3,) and pixels.dtype == np.uint8 and len(pixels) != 3:
        return Image.fromarray(np.ascontiguousarray(pixels))
    return np.ascontiguousarray(check_pixels(pixels))


def _described(image: Any) -> str:
    """Return what was given, in a few words."""
    kind = type(image).__name__
    return (
        f"{kind} of {image.dtype} on {image.device}" if hasattr(image, "device") and hasattr(image, "dtype") else kind
    )


def preprocess(
    image: Image.Image,
    *,
    image_size: int,
    image_mean: Sequence[float],
    image_aspect_ratio: str,
    image_resize: int | None = None,
    image_resample: str = "bicubic",
) -> np.ndarray:
    """Return an RGB image as ``uint8 [3, image_size, image_size]``, exactly as the checkpoint's image processor does.

    ``"pad"``: pad to a square with the mean color, then resize (original LLaVA, MobileVLM, ``LlavaImageProcessor``).
    ``"crop"``: resize the shorter side, then crop to the center square (``CLIPImageProcessor``). ``"stretch"``: resize
    both sides, whatever the aspect ratio. Each resizes to ``image_resize`` pixels, ``image_size`` if it is None, by
    ``image_resample``, one of ``llava_runner.contract.RESAMPLES``, and keeps the center. Raises ``ImageError`` for an
    image so thin that, padded, its shorter side would become less than ``MIN_IMAGE_SIDE`` pixels.
    """
    square = Square(image_size, image_resize or image_size, image_resample)
    if image_aspect_ratio not in IMAGE_ASPECT_RATIOS:
        raise ImageError(f"image_aspect_ratio {image_aspect_ratio!r}: choose from {', '.join(IMAGE_ASPECT_RATIOS)}")
    _check_aspect(image, image_size)
    if image_aspect_ratio == "stretch":
        return _to_pixels(stretched_square(image, square=square))
    if image_aspect_ratio == "crop":
        return _to_pixels(center_square(image, square=square))
    red, green, blue = (int(channel * 255) for channel in image_mean)
    return _to_pixels(padded_square(image, square=square, color=(red, green, blue)))


def fit(image: Image.Image, *, image_size: int, image_resample: str = "bicubic") -> np.ndarray:
    """Return an image as ``uint8 [3, H, W]``, resized so that its longer side is ``image_size``.

    The aspect ratio is kept, and the vision encoder pads the rest. Raises ``ImageError`` as ``preprocess`` does.
    """
    image = to_rgb(image)
    _check_aspect(image, image_size)
    longer = max(image.size)
    width, height = (max(MIN_IMAGE_SIDE, round(side * image_size / longer)) for side in image.size)
    return _to_pixels(resized(image, width, height, resample=image_resample))


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
