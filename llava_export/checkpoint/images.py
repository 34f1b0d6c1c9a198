"""How a checkpoint prepares images: read from the settings of its image processor, and of LLaVA's own ``config.json``.

In llava-hf's layout the image processor's file says all, as transformers reads it. In the original layout
``image_aspect_ratio`` in ``config.json`` says whether images are padded to a square; the rest is said by the image
processor of the vision tower, as in the code of LLaVA and MobileVLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llava_export.checkpoint.locate import local_folder
from llava_export.errors import CheckpointError, ConfigError
from llava_runner.contract import MAX_IMAGE_SIDE, MAX_STD, MIN_IMAGE_SIDE, RESAMPLES
from llava_runner.documents import JsonObject, is_integer, is_number, read_object, shown
from llava_runner.image import prepare_image

Value = TypeVar("Value")
Channels = tuple[float, float, float]
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
HALVES: Channels = (0.5, 0.5, 0.5)  # SigLIP's mean and standard deviation
SMALLEST_STD = 0.001
DEFAULT_SIDE = {"height": 224, "width": 224}


@dataclass(frozen=True)
class ProcessorClass:
    """The defaults of a class of image processors in transformers. ``pads``: whether do_pad makes a square there."""

    pads: bool
    mean: Channels
    std: Channels
    size: Mapping[str, int]
    crop_size: Mapping[str, int] | None

    @property
    def aspect_ratio(self) -> str:
        """How the class makes squares without padding, as in ``Images``."""
        return "crop" if self.crop_size else "stretch"


CLIP = ProcessorClass(pads=False, mean=CLIP_MEAN, std=CLIP_STD, size={"shortest_edge": 224}, crop_size=DEFAULT_SIDE)
SIGLIP = ProcessorClass(pads=False, mean=HALVES, std=HALVES, size=DEFAULT_SIDE, crop_size=None)
PROCESSORS = {
    "CLIPImageProcessor": CLIP,
    "LlavaImageProcessor": replace(CLIP, pads=True),
    "SiglipImageProcessor": SIGLIP,
}
# The one that belongs to each type of vision tower.
TOWER_PROCESSORS = {"clip_vision_model": CLIP, "siglip_vision_model": SIGLIP}
# The values of LLaVA's image_aspect_ratio, and whether they pad. Where it is missing, LLaVA's code takes "square".
ASPECT_RATIOS = {"pad": True, "square": False}


@dataclass(frozen=True)
class Images:
    """How images are prepared, as in ``llava_runner.contract.ModelCard``. ``source`` says for people what says it."""

    mean: Channels
    std: Channels
    aspect_ratio: str
    size: int
    resize: int
    resample: str
    source: str = field(default="", compare=False)

    def text(self) -> str:
        """Return for people what is done with an image."""
        return described(self.aspect_ratio, size=self.size, resize=self.resize, resample=self.resample)

    def prepared(self, image: Any) -> np.ndarray:
        """Return any kind of image as ``prepare_image`` does, ``uint8 [3, H, W]``. Raises ``ImageError``."""
        return prepare_image(
            image,
            image_size=self.size,
            image_mean=self.mean,
            image_aspect_ratio=self.aspect_ratio,
            image_resize=self.resize,
            image_resample=self.resample,
        )


def described(aspect_ratio: str, *, size: int, resize: int, resample: str) -> str:
    """Return for people what is done with an image, by the values that ``ModelCard`` has."""
    how = {"pad": "padded to a square", "crop": "cropped to the center square", "stretch": "stretched to a square"}
    kept = "" if resize == size else f", of which the center {size} are kept"
    return f"{how[aspect_ratio]}, resized to {resize} pixels ({resample}){kept}"


def check_pinpoints(config: JsonObject) -> None:
    """Raise ``ConfigError`` for a ``config.json`` of a model that sees an image in several crops."""
    ratio = config.get("image_aspect_ratio")
    if ratio is not None and (not isinstance(ratio, str) or ratio not in ASPECT_RATIOS):
        raise ConfigError(
            f"image_aspect_ratio {shown(ratio)} is not supported: an image is seen whole here, not in several crops; "
            f"choose from {', '.join(ASPECT_RATIOS)}"
        )
    if ratio is None and config.get("image_grid_pinpoints") is not None:
        raise ConfigError("image_grid_pinpoints are not supported: an image is seen whole here, not in several crops")


# Of a language model alone: values that a model card may have, and nothing reads.
NO_IMAGES = Images(HALVES, HALVES, "pad", MIN_IMAGE_SIDE, MIN_IMAGE_SIDE, "bicubic", "nothing")


def find_images(
    config: JsonObject,
    folders: Iterable[Path],
    *,
    default: str | None,
    image_size: int | None,
    tower_type: str = "clip_vision_model",
) -> Images | None:
    """Return how images are prepared for a vision tower of a type that takes squares of ``image_size`` pixels.

    Where that is not known, it is None, and so is what is returned: everything else is checked.

    The image processor's file is in the first of ``folders`` that has one. Where none has, images are made square for
    CLIP as ``default`` says, and the rest is as the tower's own processor does it. ``default`` is None in the layout
    whose ``config.json`` says whether images are padded. Raises ``ConfigError`` for what the runners cannot do, and
    ``CheckpointError`` for what is no JSON.
    """
    of_tower = TOWER_PROCESSORS[tower_type]
    pads = ASPECT_RATIOS[config.text("image_aspect_ratio", "square")] if default is None else None
    settings = next((found for found in map(_settings_in, folders) if found is not None), None)
    if settings is None:
        if image_size is None:
            return None
        how, source = "pad" if pads else of_tower.aspect_ratio, "config.json"
        if default is not None:
            how, source = (default, "its family") if of_tower is CLIP else (how, "its vision tower")
        return Images(of_tower.mean, of_tower.std, how, image_size, image_size, "bicubic", source)
    settings = settings.raising(ConfigError)
    # LLaVA's own code opens the file with the class that belongs to the tower, whatever class the file names.
    named = _class(settings) if pads is None else of_tower
    images = _images(settings, named, do_pad=_do_pad(settings, named) if pads is None else pads)
    if image_size is not None and images.size != image_size:
        raise ConfigError(
            f"{settings.where()} makes images of {images.size}x{images.size} pixels, and the vision tower takes "
            f"{image_size}x{image_size}"
        )
    return images


def tower_folders(name: str, *, found: Path | None, checkpoint: Path) -> list[Path]:
    """Return the folders in which a vision tower's image processor is looked for, the likeliest first.

    ``name`` is the tower's in ``config.json``, the name of a folder in the checkpoint or elsewhere, or none on this
    machine. ``found`` is where it was found, or None.
    """
    named = (local_folder(str(checkpoint / name)), local_folder(name))
    return [folder for folder in (found, *named, checkpoint) if folder is not None]


def _settings_in(folder: Path) -> JsonObject | None:
    """Return the settings of the image processor in a folder, or None. Raises ``CheckpointError``.

    ``processor_config.json`` goes first, as in transformers.
    """
    if (folder / "processor_config.json").is_file():
        processor = read_object(folder / "processor_config.json", error=CheckpointError)
        if processor.get("image_processor") is not None:
            return processor.section("image_processor")
    if (folder / "preprocessor_config.json").is_file():
        return read_object(folder / "preprocessor_config.json", error=CheckpointError)
    return None


def _images(settings: JsonObject, named: ProcessorClass, *, do_pad: bool) -> Images:
    """Return what an image processor of a class does. With ``do_pad``, images are padded to a square first."""
    if not _flag(settings, "do_resize", True):
        raise ConfigError(f"{settings.where('do_resize')} is false: images of any size are resized here")
    aspect_ratio, resize = _resize(settings, named)
    crops = _flag(settings, "do_center_crop", named.crop_size is not None)
    size = _crop(settings, named, at_most=resize) if crops else resize
    if do_pad:
        aspect_ratio = "pad"  # what is resized is a square then
    elif aspect_ratio == "crop" and not crops:
        raise ConfigError(
            f"{settings.where('size')} has a shortest_edge and do_center_crop is false: images would not be square"
        )
    mean, std = _statistics(settings, named, do_pad=do_pad)
    number = _default(settings, "resample", RESAMPLES.index("bicubic"))
    number = settings.integer("resample", number, least=0, most=len(RESAMPLES) - 1)
    return Images(mean, std, aspect_ratio, size, resize, RESAMPLES[number], settings.where())


def _class(settings: JsonObject) -> ProcessorClass:
    """Return the class that an image processor's file of llava-hf's layout names. Raises ``ConfigError``."""
    name = settings.get("image_processor_type")
    if name is None:
        name = settings.text("feature_extractor_type", "LlavaImageProcessor")
        name = name.replace("FeatureExtractor", "ImageProcessor")
    known = name.removesuffix("Fast").removesuffix("Pil") if isinstance(name, str) else None
    if known not in PROCESSORS:
        raise ConfigError(
            f"image processor {shown(name)} in {settings.where()} is not supported; choose from {', '.join(PROCESSORS)}"
        )
    if settings.get("image_grid_pinpoints") is not None:
        raise ConfigError(f"{settings.where('image_grid_pinpoints')}: models that see several crops are not supported")
    return PROCESSORS[known]


def _do_pad(settings: JsonObject, named: ProcessorClass) -> bool:
    """Return whether an image processor of llava-hf's layout pads images to a square before it resizes them."""
    if not _flag(settings, "do_pad", False):
        return False
    if not named.pads and settings.get("pad_size") is not None:
        raise ConfigError(f"{settings.where('pad_size')} is not supported: images are padded to squares alone")
    return named.pads  # the other classes pad the images of a batch to the largest, and here is one


def _resize(settings: JsonObject, named: ProcessorClass) -> tuple[str, int]:
    """Return ``"crop"`` where the shorter side is resized, or ``"stretch"`` where both are, and to how many pixels."""
    size = _size(settings, "size", named.size)
    if set(size) == {"shortest_edge"}:
        return "crop", _pixels(size, "shortest_edge")
    return "stretch", _square(size, needed="shortest_edge alone, or height and width")


def _crop(settings: JsonObject, named: ProcessorClass, *, at_most: int) -> int:
    """Return the side of the center that is kept, in pixels."""
    size = _square(_size(settings, "crop_size", named.crop_size))
    if size > at_most:
        raise ConfigError(f"{settings.where('crop_size')} is {size} and its size {at_most}: a crop cannot be larger")
    return size


def _size(settings: JsonObject, name: str, default: Mapping[str, int] | None) -> JsonObject:
    """Return a size as the object that it is in newer files. In older ones it is a number or a list."""
    value = settings.get(name)
    if isinstance(value, list) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    elif is_integer(value):
        is_square = name == "crop_size" or _flag(settings, "default_to_square", False)
        value = dict.fromkeys(("height", "width") if is_square else ("shortest_edge",), value)
    newer = JsonObject({**settings, name: value}, what=settings.where(), error=ConfigError)
    size = newer.section(name, _default(settings, name, default))
    return JsonObject({k: v for k, v in size.items() if v is not None}, what=size.where(), error=ConfigError)


def _square(size: JsonObject, *, needed: str = "height and width") -> int:
    """Return the side of a square size. Raises ``ConfigError``, which says what is ``needed``, for any other."""
    if set(size) != {"height", "width"}:
        raise ConfigError(f"{size.where()} has {shown(', '.join(size))}; it must have {needed}")
    height, width = _pixels(size, "height"), _pixels(size, "width")
    if height != width:
        raise ConfigError(f"{size.where()} is {width}x{height} pixels; the vision tower takes squares")
    return height


def _pixels(size: JsonObject, name: str) -> int:
    """Return a length of a size."""
    return size.integer(name, least=MIN_IMAGE_SIDE, most=MAX_IMAGE_SIDE)


def _statistics(settings: JsonObject, named: ProcessorClass, *, do_pad: bool) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of pixels that are fractions of 1, with ``rescale_factor`` in them."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    normalizes = _flag(settings, "do_normalize", True)
    if normalizes:
        mean, std = _channels(settings, "image_mean", named.mean), _channels(settings, "image_std", named.std)
    factor = 1.0
    if _flag(settings, "do_rescale", True):
        factor = settings.number("rescale_factor", _default(settings, "rescale_factor", 1 / 255))
    if factor <= 0:
        raise settings.wrong("rescale_factor", "above 0")
    full = 255 * factor  # what a pixel of 255 becomes
    if abs(full - 1) > 1e-6:
        mean, std = _divided(mean, full), _divided(std, full)
    if not all(0 <= value <= 1 for value in mean) or not all(SMALLEST_STD <= value <= MAX_STD for value in std):
        raise ConfigError(
            f"{settings.where()} has image_mean {list(mean)} and image_std {list(std)}; they must be fractions of 1, "
            "and standard deviations cannot be 0"
        )
    if do_pad and (not normalizes or abs(full - 1) > 1e-6):
        raise ConfigError(
            f"{settings.where()} pads images and has do_normalize or do_rescale false, or another rescale_factor than "
            "1/255: the padding would not be of the mean color"
        )
    return mean, std


def _channels(settings: JsonObject, name: str, default: Channels) -> Channels:
    """Return a value for each of red, green and blue. A single one is that of all."""
    if is_number(settings.get(name)):
        return (settings.number(name),) * 3
    red, green, blue = settings.numbers(name, _default(settings, name, default), count=3)
    return red, green, blue


def _flag(settings: JsonObject, name: str, default: bool) -> bool:
    """Return a setting that is true or false. null is false to transformers, which writes it."""
    return settings.flag(name, default if name not in settings else False)


def _default(settings: JsonObject, name: str, default: Value) -> Value | None:
    """Return what stands for a setting that is missing. One that is null has no default in transformers either."""
    return default if name not in settings else None


def _divided(values: Channels, by: float) -> Channels:
    """Return the values divided by a number."""
    red, green, blue = values
    return red / by, green / by, blue / by
