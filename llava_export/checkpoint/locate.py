"""Finds a checkpoint's folder: a local one, a built-in one, or one of the hub, downloaded into its cache."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_export.builtin import CHECKPOINTS
from llava_export.errors import CheckpointError

Channels = tuple[float, float, float]
CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Everything a checkpoint may consist of, without the duplicates in other formats that some repositories carry.
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model"]
HUB_FILES_OF_OLD = ["pytorch_model*.bin"]


def locate(model: str, *, flag: str = "--model") -> Path:
    """A built-in name, a folder or a hub id to a folder with a ``config.json``; raises ``CheckpointError``.

    ``flag`` is where the user named it.
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
    """A JSON object; raises ``CheckpointError``."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def image_statistics(*folders: Path) -> tuple[Channels, Channels]:
    """Mean and standard deviation of the pixels the tower was trained on, by channel, as fractions of 1.

    They are CLIP's where no folder says otherwise.
    """
    section: Mapping[str, Any] = {}
    for folder in folders:
        if (folder / "preprocessor_config.json").is_file():
            section = read_json(folder / "preprocessor_config.json")
            break
        if (folder / "processor_config.json").is_file():  # transformers 5 keeps it there
            section = read_json(folder / "processor_config.json").get("image_processor") or {}
            break
    mean, std = section.get("image_mean", CLIP_MEAN), section.get("image_std", CLIP_STD)
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise CheckpointError(f"the image processor's config in {folder} needs three means and standard deviations")
    return (*map(float, mean),), (*map(float, std),)  # type: ignore[return-value]  # three each, as checked


def _download(model: str, *, flag: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, allow_patterns=HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=HUB_FILES_OF_OLD)
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{model} cannot be downloaded ({type(error).__name__}: no network, or no such model). "
            f"Give a local checkpoint with {flag} FOLDER, or try --model tiny-llava, which is built in"
        ) from error
