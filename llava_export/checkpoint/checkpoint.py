"""A checkpoint, opened: everything known of it before any weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_export.checkpoint.locate import Channels, image_statistics, locate, read_json
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.weights import Weights
from llava_export.config import LlavaConfig
from llava_export.families import Family, find_family
from llava_export.models.llava import LlavaModel


@dataclass(frozen=True)
class Checkpoint:
    """``name`` is what the user called it."""

    name: str
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


def open_checkpoint(model: str) -> Checkpoint:
    """Find and check a checkpoint. Raises ``ConfigError`` and ``CheckpointError``."""
    folder = locate(model)
    settings = read_json(folder / "config.json")
    family = find_family(settings)
    config = family.parse_config(settings)
    mean, std = image_statistics(folder)
    weights = Weights(CheckpointReader(folder), family=family, config=config)
    checkpoint = Checkpoint(model, folder, family, config, mean, std, weights)
    weights.check(checkpoint.build_model(max_context_len=1))
    return checkpoint
