"""Finds a checkpoint's folder: a local one, a built-in one, or one that is downloaded into the hub's cache."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_export.builtin import CHECKPOINTS
from llava_export.errors import CheckpointError

Channels = tuple[float, float, float]
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
    folder = Path(model).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(model) and not model.startswith("."):
        folder = _download(model, flag=flag)
    if not folder.exists():
        raise CheckpointError(f"{model} is no folder, no hub id and no built-in model ({', '.join(CHECKPOINTS)})")
    if not folder.is_dir():
        raise CheckpointError(f"{model} is a file; {flag} takes the folder of a checkpoint")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{model} has no config.json; is it the folder of a checkpoint?")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ``CheckpointError`` if the file holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def image_statistics(*folders: Path) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of the vision tower's training images, by channel, as fractions of 1.

    They are in the first of ``folders`` that has an image processor's config, or CLIP's if none has. Raises
    ``CheckpointError`` if they cannot be used.
    """
    section: Mapping[str, Any] = {}
    for folder in folders:
        if (folder / "preprocessor_config.json").is_file():
            section = read_json(folder / "preprocessor_config.json")
            break
        if (folder / "processor_config.json").is_file():  # where transformers 5 writes it
            section = read_json(folder / "processor_config.json").get("image_processor") or {}
            break
    mean, std = section.get("image_mean", CLIP_MEAN), section.get("image_std", CLIP_STD)
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise CheckpointError(f"the image processor's config in {folder} needs three means and standard deviations")
    return _channels(mean), _channels(std)


def _channels(values: Sequence[Any]) -> Channels:
    """Return three numbers as floats."""
    red, green, blue = map(float, values)
    return red, green, blue


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
