"""CLIP's vision transformer (Radford et al., 2021).

Shapes: B images (always 1), S a side of the image in pixels, N patches plus the class token, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llava_export.config import VisionConfig
from llava_export.models.layers import LayerNorm
from llava_export.models.vision_layers import VisionTower


class ClipEmbeddings(nn.Module):
    """Patches as rows, with the class token before them and learned positions added."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, side = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(size))
        self.patch_embedding = nn.Conv2d(3, size, kernel_size=side, stride=side, bias=False)
        self.position_embedding = nn.Embedding(config.num_rows, size)

    def forward(self, pixel_values_B3SS: Tensor) -> Tensor:
        """Return rows ``[B, N, D]`` for normalized pixels ``[B, 3, S, S]``."""
        patches_BND = self.patch_embedding(pixel_values_B3SS).permute(0, 2, 3, 1).flatten(1, 2)
        x_BND = torch.cat((self.class_embedding.view(1, 1, -1), patches_BND), dim=1)
        return x_BND + self.position_embedding.weight


class ClipVisionTower(VisionTower):
    """The tower of LLaVA-1, LLaVA-1.5 and MobileVLM."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(
            config,
            embeddings=ClipEmbeddings(config),
            pre_layrnorm=LayerNorm(config.hidden_size, eps=config.layer_norm_eps),  # CLIP's own spelling
        )
