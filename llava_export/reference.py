"""The float model, run one block at a time from the checkpoint: memory holds a single block's float32 weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llava_export.checkpoint.weights import Weights
from llava_export.models.llava import LlavaModel


class FloatReference:
    """Answers as the checkpoint does in float32. ``model`` is on the meta device and stays there."""

    def __init__(self, model: LlavaModel, *, weights: Weights) -> None:
        self._model = model
        self._weights = weights

    @torch.no_grad()
    def encode_image(self, image_3HW: Tensor) -> Tensor:
        """``uint8 [3, H, W]`` to features ``[1, num_image_tokens, hidden_size]``."""
        tower = "vision_encoder.vision_tower"
        with self._filled(f"{tower}.embeddings") as embeddings:
            x_BND = embeddings(self._model.vision_encoder.pixel_values(image_3HW))
        with self._filled(f"{tower}.pre_layrnorm") as pre_layrnorm:
            hidden_states = [pre_layrnorm(x_BND)]
        for i in range(len(self._model.vision_encoder.vision_tower.layers)):
            with self._filled(f"{tower}.layers.{i}") as layer:
                hidden_states.append(layer(hidden_states[-1]))
        with self._filled("vision_encoder.projector") as projector:
            return projector(self._model.vision_encoder.vision_tower.features(hidden_states))

    @torch.no_grad()
    def embed(self, ids: list[int]) -> Tensor:
        """Token ids to ``[1, T, hidden_size]``."""
        with self._filled("token_embedding") as token_embedding:
            return token_embedding(torch.tensor([ids]))

    @torch.no_grad()
    def decode(self, inputs_embeds_1TD: Tensor, position: int) -> Tensor:
        """Rows from ``position`` on to the last one's logits ``[vocab_size]``; the model's own cache remembers."""
        decoder = self._model.text_decoder
        x_1TD = inputs_embeds_1TD
        start, cos_T1e, sin_T1e = decoder.positions(torch.tensor([position]), x_1TD.shape[1])
        for i in range(len(decoder.layers)):
            with self._filled(f"text_decoder.layers.{i}") as layer:
                x_1TD = layer(x_1TD, cos_T1e, sin_T1e, start)
        with self._filled("text_decoder.norm"), self._filled("text_decoder.lm_head"):
            return decoder.logits(x_1TD).flatten()

    @contextmanager
    def _filled(self, fqn: str) -> Iterator[Any]:
        block = self._model.get_submodule(fqn)
        self._weights.fill(block, prefix=fqn)
        try:
            yield block
        finally:
            self._weights.release(block)
