"""Finds a checkpoint's folder: a local one, a built-in one, or one that is downloaded into the hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llava_export.builtin import CHECKPOINTS
from llava_export.errors import CheckpointError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The files that are downloaded. Some repositories have the weights in several formats; .bin files are downloaded only
# where there are no .safetensors.
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "non_lora_trainables.bin", "mm_projector.bin"]
HUB_BIN_FILES = ["pytorch_model*.bin", "adapter_model.bin"]


def locate(model: str, *, flag: str = "--model", files: Sequence[str] = ("config.json",)) -> Path:
    """Return the folder of a built-in name, folder or hub id. It has one of ``files``. Raises ``CheckpointError``.

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
    if not any((folder / name).is_file() for name in files):
        raise CheckpointError(f"{model} has no {files[0]}; is it the folder of a checkpoint?")
    return folder


def local_folder(name: str) -> Path | None:
    """Return the path of a name on this machine, or None where nothing has it. ``~`` stands for a home folder."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user, a zero byte
        return None


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
