"""The float model of a checkpoint, all of it in memory, with the calls that an exported program has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_export.models.llava import LlavaModel


@dataclass
class FloatModel:
    """A ``llava_runner.model.Model`` that torch computes. Its weights must be filled."""

    modules: LlavaModel

    @torch.no_grad()
    def encode_image(self, pixels: np.ndarray) -> Tensor:
        """Return the features ``float32 [1, num_image_tokens, hidden_size]`` of an RGB image ``uint8 [3, H, W]``."""
        return self.modules.vision_encoder(torch.from_numpy(pixels))

    @torch.no_grad()
    def embed(self, input_ids: list[int]) -> Tensor:
        """Return the rows ``float32 [1, T, hidden_size]`` of T token ids."""
        return self.modules.token_embedding(torch.tensor([input_ids]))

    @torch.no_grad()
    def decode(self, inputs_embeds: Tensor, *, position: int) -> Tensor:
        """Read rows ``float32 [1, T, hidden_size]`` from ``position`` on. Return the last logits ``[vocab_size]``."""
        return self.modules.text_decoder(inputs_embeds, torch.tensor([position])).flatten()
