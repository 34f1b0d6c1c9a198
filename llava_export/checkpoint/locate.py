"""Finds a checkpoint's folder: a local one, a built-in one, or one that is downloaded into the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from llava_export.builtin import CHECKPOINTS
from llava_export.errors import CheckpointError
from llava_runner.contract import MAX_STD
from llava_runner.documents import JsonObject, read_object

Channels = tuple[float, float, float]
SMALLEST_STD = 0.001
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The files that are downloaded. Some repositories have the weights in several formats; .bin files are downloaded only
# where there are no .safetensors.
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model"]
HUB_BIN_FILES = ["pytorch_model*.bin"]


def locate(model: str, *, flag: str = "--model") -> Path:
    """Return the folder of a built-in name, folder or hub id. It has a ``config.json``. Raises ``CheckpointError``.

    ``flag`` is where the user named ``model``, for messages.
    """
    if model in CHECKPOINTS:
        return CHECKPOINTS[model]
    folder = local_folder(model)
    if folder is None and HUB_ID.fullmatch(model) and not model.startswith("."):
        folder = _download(model, flag=flag)
    if folder is None:
        raise CheckpointError(f"{model} is no folder, no hub id and no built-in model ({', '.join(CHECKPOINTS)})")
    if not folder.is_dir():
        raise CheckpointError(f"{model} is a file; {flag} takes the folder of a checkpoint")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{model} has no config.json; is it the folder of a checkpoint?")
    return folder


def local_folder(name: str) -> Path | None:
    """Return the path of a name on this machine, or None where nothing has it. ``~`` stands for a home folder."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user, a zero byte
        return None


def image_statistics(*folders: Path) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of the vision tower's training images, by channel, as fractions of 1.

    They are in the first of ``folders`` that has an image processor's config, or CLIP's if none has. Raises
    ``CheckpointError`` if they cannot be used.
    """
    section = JsonObject({}, what="", error=CheckpointError)
    for folder in folders:
        if (folder / "preprocessor_config.json").is_file():
            section = read_object(folder / "preprocessor_config.json", error=CheckpointError)
            break
        if (folder / "processor_config.json").is_file():  # where transformers 5 writes it
            processor = read_object(folder / "processor_config.json", error=CheckpointError)
            section = processor.section("image_processor", {})
            break
    mean, std = section.numbers("image_mean", CLIP_MEAN, count=3), section.numbers("image_std", CLIP_STD, count=3)
    if not all(0 <= value <= 1 for value in mean) or not all(SMALLEST_STD <= value <= MAX_STD for value in std):
        raise CheckpointError(
            f"{section.where()} has image_mean {list(mean)} and image_std {list(std)}; they must be fractions of 1, "
            "and standard deviations cannot be 0"
        )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _download(model: str, *, flag: str) -> Path:
    """Return the folder of a hub id in the hub's cache, downloaded if need be. Raises ``CheckpointError``."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=HUB_BIN_FILES)
        return folder
    except HFValidationError as error:
        raise CheckpointError(f"{model} is no folder and cannot be a hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{model} cannot be downloaded ({type(error).__name__}: no network, or no such model). "
            f"Give a local checkpoint with {flag} FOLDER, or try --model tiny-llava, which is built in"
        ) from error
