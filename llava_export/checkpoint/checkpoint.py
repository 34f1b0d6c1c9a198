"""A checkpoint, opened: everything known of it before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_export.checkpoint.locate import Channels, image_statistics, locate, read_json
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.tower import find_tower
from llava_export.checkpoint.weights import Weights
from llava_export.config import LlavaConfig
from llava_export.errors import ConfigError
from llava_export.families import Family, find_family
from llava_export.models.llava import LlavaModel
from llava_export.models.names import VISION_TOWER, is_in


@dataclass(frozen=True)
class Checkpoint:
    """``name`` is what the user called it, and ``vision_tower`` a tower given in place of its own."""

    name: str
    vision_tower: str | None
    folder: Path
    family: Family
    config: LlavaConfig
    image_mean: Channels
    image_std: Channels
    weights: Weights

    def build_model(self, config: LlavaConfig | None = None, *, max_context_len: int, **kwargs: Any) -> LlavaModel:
        """The model on the meta device: shapes, no weights. ``config`` is another than the checkpoint's own."""
        with torch.device("meta"):
            model = LlavaModel(
                config or self.config,
                image_mean=self.image_mean,
                image_std=self.image_std,
                max_context_len=max_context_len,
                **kwargs,
            )
        return model.eval().requires_grad_(False)


def open_checkpoint(model: str, *, vision_tower: str | None = None) -> Checkpoint:
    """Find and check a checkpoint; ``vision_tower`` is a folder or hub id to take the tower from.

    Raises ``ConfigError`` and ``CheckpointError``.
    """
    folder = locate(model)
    settings = read_json(folder / "config.json")
    family = find_family(settings)
    reader = CheckpointReader(folder)
    tower = None
    if family.tower_key is not None:
        is_inside = any(is_in(family.rename(key) or "", VISION_TOWER) for key in reader.shapes)
        tower = find_tower(settings.get(family.tower_key), given=vision_tower, checkpoint=folder, is_inside=is_inside)
        if tower.folder is not None:
            reader.add(tower.folder)
    elif vision_tower is not None:
        raise ConfigError(f"--vision-tower: checkpoints of {family.name} in this layout have theirs inside")
    config = family.parse_config(settings, tower.config if tower else None)
    family.check_keys(settings, reader.shapes)
    mean, std = image_statistics(folder, *([tower.folder] if tower and tower.folder else []))
    weights = Weights(reader, family=family, config=config)
    checkpoint = Checkpoint(model, vision_tower, folder, family, config, mean, std, weights)
    weights.check(checkpoint.build_model(max_context_len=1))
    return checkpoint
