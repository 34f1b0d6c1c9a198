"""The calls that the float model and an exported program have in common, and the greedy loop over either."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from llava_runner.contract import ModelCard


class Model(Protocol):
    """A model that sees one image and reads one sequence. It remembers the rows it has read.

    Shapes: T rows, D hidden size, V vocabulary, N positions of an image.
    """

    def encode_image(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the features ``float32 [1, N, D]`` of an RGB image ``uint8 [3, H, W]``."""
        ...

    def embed(self, input_ids: list[int]) -> torch.Tensor:
        """Return the rows ``float32 [1, T, D]`` of T token ids."""
        ...

    def decode(self, inputs_embeds: torch.Tensor, *, position: int) -> torch.Tensor:
        """Read rows ``float32 [1, T, D]`` from ``position`` on. Return the last row's logits ``float32 [V]``."""
        ...

    def verify(self, inputs_embeds: torch.Tensor, *, position: int) -> torch.Tensor:
        """Read rows as ``decode`` does. Return the logits ``float32 [T, V]`` after each of them.

        A program takes at most ``card.logits_to_keep`` rows.
        """
        ...


class ModelWithCard(Model, Protocol):
    """A model that also says what a runner must know of it."""

    @property
    def card(self) -> ModelCard:
        """Return the model's card."""
        ...


def most_likely(logits: torch.Tensor) -> int:
    """Return the token with the largest logit."""
    return int(logits.argmax())


def greedy(
    model: Model,
    inputs_embeds: torch.Tensor,
    *,
    max_tokens: int,
    eos_ids: Sequence[int] = (),
    choose: Callable[[torch.Tensor], int] = most_likely,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Read a prompt ``float32 [1, T, D]`` and yield each token of the answer with the logits it was chosen from.

    The answer ends after ``max_tokens`` tokens or one of ``eos_ids``, which is yielded too. ``choose`` picks a token by
    its logits ``float32 [V]``.
    """
    position = 0
    for _ in range(max_tokens):
        logits = model.decode(inputs_embeds, position=position)
        token = choose(logits)
        yield token, logits
        if token in eos_ids:
            return
        position += inputs_embeds.shape[1]
        inputs_embeds = model.embed([token])
