"""Finds a checkpoint's folder: a local one, a built-in one, or one that is downloaded into the hub's cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.refusals import without_config
from llava_export.errors import CheckpointError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# The files that are downloaded. Some repositories have the weights in several formats; .bin files are downloaded only
# where there are no .safetensors.
HUB_FILES = [
    "*.json", "*.jinja", "*.safetensors", "tokenizer.model", "non_lora_trainables.bin", "mm_projector.bin"
]  # fmt: skip
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
        raise CheckpointError(f"{model} {without_config(folder)}")
    return folder


def local_folder(name: str) -> Path | None:
    """Return the path of a name on this machine, or None where nothing has it. ``~`` stands for a home folder."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user, a zero byte
        return None


def needs_download(name: str) -> bool:
    """Return whether a name can only be that of a model on the hub of which the cache has nothing."""
    return name not in CHECKPOINTS and local_folder(name) is None and not cached_snapshots(name)


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
        cached = cached_snapshots(model)
        if len(cached) == 1:
            return cached[0]
        if cached:
            raise CheckpointError(
                f"{model} cannot be downloaded, and {cached[0].parent} has {len(cached)} snapshots of which none is "
                f"known to be main; give one: {flag} {cached[0]}"
            ) from error
        raise CheckpointError(
            f"{model} cannot be downloaded ({type(error).__name__}: no network, or no such model). "
            f"Give a local checkpoint with {flag} FOLDER, or try --model tiny-llava, which is built in"
        ) from error


def cached_snapshots(hub_id: str) -> list[Path]:
    """Return the folders of a hub id in the hub's cache, complete or not, without asking the hub.

    That is the one that the cache knows to be ``main``, or all that it has.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")
    except HFValidationError:
        return []
    snapshots = sorted(path for path in folder.glob("snapshots/*") if path.is_dir())
    main = folder / "refs" / "main"
    name = main.read_text(errors="replace").strip() if main.is_file() else None
    return [path for path in snapshots if path.name == name] or snapshots
