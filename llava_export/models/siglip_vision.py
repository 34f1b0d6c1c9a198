"""SigLIP's vision transformer (Zhai et al., 2023).

Its layers are CLIP's. It has no class token and no norm before the layers, and the patches' convolution has a bias.

Shapes: B images (always 1), S a side of the image in pixels, N patches, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from llava_export.config import VisionConfig
from llava_export.models.vision_layers import VisionTower


class SiglipEmbeddings(nn.Module):
    """Patches as rows, with learned positions added. Pixels beyond the last whole patch are not read."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, side = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, size, kernel_size=side, stride=side)
        self.position_embedding = nn.Embedding(config.num_rows, size)

    def forward(self, pixel_values_B3SS: Tensor) -> Tensor:
        """Return rows ``[B, N, D]`` for normalized pixels ``[B, 3, S, S]``."""
        patches_BND = self.patch_embedding(pixel_values_B3SS).permute(0, 2, 3, 1).flatten(1, 2)
        return patches_BND + self.position_embedding.weight


class SiglipVisionTower(VisionTower):
    """The tower of LLaVA-Interleave and others.

    SigLIP itself has a norm after the last layer and a head that pools the rows. Neither is here: transformers' LLaVA
    reads ``hidden_states``, which are outputs of layers before that norm (``capture_outputs`` in ``SiglipVisionModel``
    of transformers 5.23), and LLaVA's own ``SigLipVisionTower`` removes the head and reads them likewise.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config, embeddings=SiglipEmbeddings(config))
