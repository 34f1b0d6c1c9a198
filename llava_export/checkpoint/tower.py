"""Finds the vision tower of a checkpoint whose config only names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_export.checkpoint.locate import local_folder, locate
from llava_export.errors import CheckpointError, ConfigError
from llava_export.families.sections import CLIP_L_336
from llava_runner.documents import JsonObject, read_object, shown

# Vision towers whose hub id and sizes are known, by the last part of the name in config.json. The name may be a hub id,
# or a folder on the machine where the model was trained.
KNOWN = {"clip-vit-large-patch14-336": ("openai/clip-vit-large-patch14-336", CLIP_L_336)}


@dataclass(frozen=True)
class Tower:
    """A vision tower. ``config`` has its sizes.

    ``folder`` has its weights; None if they are in the checkpoint of the whole model.
    """

    config: JsonObject
    folder: Path | None


def find_tower(name: Any, *, given: str | None, checkpoint: Path, is_inside: bool) -> Tower:
    """Return the vision tower that ``config.json`` names, or the one ``given`` in its place, a folder or hub id.

    ``name`` is the value in ``config.json``, and ``checkpoint`` the folder of the whole model. ``is_inside`` says that
    its shards have a vision tower's weights. Raises ``CheckpointError`` if the vision tower is not found, and
    ``ConfigError`` if it cannot be the one that the model was trained with.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"config.json has mm_vision_tower {shown(name)}; it must name a CLIP tower")
    hub_id, sizes = KNOWN.get(name.rstrip("/").rsplit("/", 1)[-1], (name, None))
    if given is not None:
        tower = _in_folder(locate(given, flag="--vision-tower"))
    elif (local := _local(name, checkpoint=checkpoint)) is not None:
        tower = _in_folder(local)
    elif is_inside and sizes is not None:
        tower = Tower(JsonObject(sizes, what=name, error=ConfigError), None)
    else:
        try:
            tower = _in_folder(locate(hub_id, flag="mm_vision_tower"))
        except CheckpointError as error:
            raise CheckpointError(
                f"the vision tower, {name} in config.json, is not inside the checkpoint and was not found elsewhere: "
                "give its folder with --vision-tower"
            ) from error
    for key, value in (sizes or {}).items():
        if tower.config.get(key, value) != value:
            raise ConfigError(
                f"the model was trained with {name}, whose {key} is {value}; the vision tower in {tower.folder} has "
                f"{shown(tower.config[key])}"
            )
    return Tower(tower.config, None) if is_inside and given is None else tower


def _local(name: str, *, checkpoint: Path) -> Path | None:
    """Return a folder of this name with a ``config.json``, in the checkpoint or elsewhere on this machine, or None."""
    folders = (local_folder(str(checkpoint / name)), local_folder(name))
    return next((folder for folder in folders if folder and (folder / "config.json").is_file()), None)


def _in_folder(folder: Path) -> Tower:
    """Return the vision tower of a CLIP checkpoint, with or without its text half. Raises ``ConfigError``."""
    config = read_object(folder / "config.json", error=CheckpointError).raising(ConfigError)
    return Tower(config.section("vision_config", config), folder)
