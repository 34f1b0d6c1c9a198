"""Vision towers by their type.

To add one, write a class in a file of its own, add it to ``VISION_TOWERS`` here and in ``config``, and give the
defaults of its config in ``families.sections``, and of its image processor in ``checkpoint.images``.
"""

from __future__ import annotations

from llava_export.config import VisionConfig
from llava_export.models.clip_vision import ClipVisionTower
from llava_export.models.siglip_vision import SiglipVisionTower
from llava_export.models.vision_layers import VisionTower

# Classes by the value of ``VisionConfig.type``.
VISION_TOWERS: dict[str, type[VisionTower]] = {
    "clip_vision_model": ClipVisionTower,
    "siglip_vision_model": SiglipVisionTower,
}


def build_vision_tower(config: VisionConfig) -> VisionTower:
    """Return a vision tower of the config's type and sizes."""
    return VISION_TOWERS[config.type](config)
