"""Finds the vision tower of a checkpoint in the layout of LLaVA's authors, whose config only names it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_export.checkpoint.locate import HUB_ID, cached_snapshots, local_folder, locate, needs_download
from llava_export.checkpoint.refusals import unreadable_files
from llava_export.checkpoint.weight_files import has_weights
from llava_export.errors import CheckpointError, ConfigError
from llava_export.families.sections import CLIP_L_224, CLIP_L_336, SIGLIP_SO400M_384
from llava_export.models.names import VISION_TOWER, tower_layer
from llava_runner.documents import JsonObject, read_object, shown

# Vision towers whose hub id and sizes are known, by the last part of the name in config.json. The name may be a hub id,
# or a folder on the machine where the model was trained.
KNOWN = {
    "clip-vit-large-patch14-336": ("openai/clip-vit-large-patch14-336", CLIP_L_336),
    "clip-vit-large-patch14": ("openai/clip-vit-large-patch14", CLIP_L_224),
    "siglip-so400m-patch14-384": ("google/siglip-so400m-patch14-384", SIGLIP_SO400M_384),
}
HEAD_SIZE = 64  # of all towers that OpenAI published as CLIP
# Parts of the names of towers that have CLIP's layout and another activation, or other heads.
OTHER_TOWERS = re.compile(r"laion|open_?clip|datacomp|dfn|eva|siglip|dino", re.IGNORECASE)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tower:
    """A vision tower. ``config`` has its sizes.

    ``folder`` has its weights; None if they are in the checkpoint of the whole model. ``described_in`` has its
    ``config.json``, and perhaps its image processor; None if it was not found. ``notes`` are sentences for the user.
    """

    config: JsonObject
    folder: Path | None
    described_in: Path | None
    notes: tuple[str, ...] = ()


def is_remote(name: Any, *, given: str | None, checkpoint: Path, inside: Shapes) -> bool:
    """Return whether ``find_tower`` would download the vision tower, or ask the hub for it."""
    if given is not None:
        return needs_download(given)
    if inside or not isinstance(name, str) or _local(name, checkpoint=checkpoint) is not None:
        return False
    hub_id, _ = _known(name)
    return bool(HUB_ID.fullmatch(hub_id)) and needs_download(hub_id)


def find_tower(name: Any, *, given: str | None, checkpoint: Path, settings: JsonObject, inside: Shapes) -> Tower:
    """Return the vision tower that ``config.json`` names, or the one ``given`` in its place, a folder or hub id.

    ``name`` is the value in ``config.json``, all of which is in ``settings``, and ``checkpoint`` the folder of the
    whole model. ``inside`` are the shapes of the vision tower's weights in its shards, by the names in the model. With
    such weights nothing is downloaded unless it is given. Raises ``CheckpointError`` if the vision tower is not found,
    and ``ConfigError`` if it cannot be the one that the model was trained with.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"config.json has mm_vision_tower {shown(name)}; it must name a vision tower")
    hub_id, sizes = _known(name)
    if given is not None:
        tower = _given(given, is_inside=bool(inside))
    elif inside:
        tower = _inside(name, hub_id, sizes, checkpoint=checkpoint, settings=settings, shapes=inside)
    else:
        tower = _outside(name, hub_id, checkpoint=checkpoint)
    for key, value in (sizes or {}).items():
        if tower.config.get(key, value) != value:
            raise ConfigError(
                f"the model was trained with {name}, whose {key} is {value}; the vision tower in {tower.described_in} "
                f"has {shown(tower.config[key])}"
            )
    return tower


def _known(name: str) -> tuple[str, Mapping[str, Any] | None]:
    """Return the hub id of the vision tower of this name, and its sizes if they are known."""
    return KNOWN.get(name.rstrip("/").rsplit("/", 1)[-1], (name, None))


def _given(given: str, *, is_inside: bool) -> Tower:
    """Return the vision tower that the user gave: a whole one, or the config of the one inside the checkpoint."""
    folder = locate(given, flag="--vision-tower")
    config = _config(folder)
    if not is_inside:
        return Tower(config, folder, folder)
    if has_weights(folder):
        note = (
            f"the vision tower in {given} replaces the one that is inside the checkpoint and may have been trained "
            "with it; without --vision-tower the one inside is used"
        )
        return Tower(config, folder, folder, (note,))
    return Tower(config, None, folder)


def _outside(name: str, hub_id: str, *, checkpoint: Path) -> Tower:
    """Return a vision tower that is not in the checkpoint. Raises ``CheckpointError`` if it is nowhere."""
    folder = _local(name, checkpoint=checkpoint)
    try:
        folder = folder or locate(hub_id, flag="mm_vision_tower")
    except CheckpointError as error:
        raise CheckpointError(
            f"the vision tower, {name} in config.json, is not inside the checkpoint and was not found elsewhere: "
            "give its folder with --vision-tower"
        ) from error
    return Tower(_config(folder), folder, folder)


def _inside(
    name: str, hub_id: str, sizes: Mapping[str, Any] | None, *, checkpoint: Path, settings: JsonObject, shapes: Shapes
) -> Tower:
    """Return a vision tower whose weights are in the checkpoint, with its sizes from wherever they are known."""
    local, cached = _local(name, checkpoint=checkpoint), cached_snapshots(hub_id)
    for folder in (local,) if local else cached if len(cached) == 1 else ():
        if (folder / "config.json").is_file():
            return Tower(_config(folder), None, folder)
    if sizes is not None:
        return Tower(JsonObject(sizes, what=name, error=ConfigError), None, None)
    if section := settings.section("vision_config", {}):
        return Tower(section, None, None)
    found = JsonObject(_sizes(shapes, name=name), what="the shapes of the vision tower's weights", error=ConfigError)
    note = (
        f"the sizes of the vision tower are those of its weights, since {name}, which config.json names, is not at "
        f"hand; heads of {HEAD_SIZE} and quick_gelu are taken for granted, as CLIP has them. If they are others, give "
        "a folder with the tower's config.json with --vision-tower"
    )
    return Tower(found, None, None, (note,))


def _sizes(shapes: Shapes, *, name: str) -> dict[str, Any]:
    """Return the config of a CLIP tower of these weights. Raises ``CheckpointError`` if they do not tell it."""
    embeddings = f"{VISION_TOWER}.embeddings"
    layers = {int(match[1]) for key in shapes if (match := re.match(tower_layer(r"(\d+)") + r"\.", key))}
    patches = shapes.get(f"{embeddings}.patch_embedding.weight", ())
    positions = shapes.get(f"{embeddings}.position_embedding.weight", ())
    inner = shapes.get(f"{tower_layer(0)}.mlp.fc1.weight", ())
    if OTHER_TOWERS.search(name):
        why = "by its name it is none of OpenAI's CLIP"
    elif f"{embeddings}.class_embedding" not in shapes or len(patches) != 4 or len(positions) != 2 or len(inner) != 2:
        why = "they are not those of a CLIP tower"
    elif patches[0] % HEAD_SIZE:
        why = f"their width of {patches[0]} is no multiple of CLIP's {HEAD_SIZE} a head"
    elif math.isqrt(max(0, positions[0] - 1)) ** 2 != positions[0] - 1:
        why = f"their {positions[0]} positions are no square of patches with a class token"
    else:
        return {
            "model_type": "clip_vision_model",
            "hidden_size": patches[0],
            "intermediate_size": inner[0],
            "num_hidden_layers": max(layers) + 1,
            "num_attention_heads": patches[0] // HEAD_SIZE,
            "num_channels": patches[1],
            "image_size": math.isqrt(positions[0] - 1) * patches[2],
            "patch_size": patches[2],
        }
    raise CheckpointError(
        f"the vision tower, {name} in config.json, is inside the checkpoint, and its weights do not tell all of its "
        f"sizes: {why}. Give a folder with its config.json alone with --vision-tower"
    )


def _local(name: str, *, checkpoint: Path) -> Path | None:
    """Return a folder of this name with a ``config.json``, in the checkpoint or elsewhere on this machine, or None."""
    folders = (local_folder(str(checkpoint / name)), local_folder(name))
    return next((folder for folder in folders if folder and (folder / "config.json").is_file()), None)


def _config(folder: Path) -> JsonObject:
    """Return the config of a checkpoint's vision tower, CLIP's or SigLIP's, with or without a text half.

    Raises ``ConfigError``, and ``CheckpointError`` if files there have no content.
    """
    for reason in unreadable_files(folder).values():
        raise CheckpointError(reason)
    config = read_object(folder / "config.json", error=CheckpointError).raising(ConfigError)
    return config.section("vision_config", config)
