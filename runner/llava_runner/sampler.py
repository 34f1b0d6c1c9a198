"""The choice of the next token: the most likely one, or a sample by temperature and top-p."""

from __future__ import annotations

import math
from typing import SupportsFloat, SupportsIndex

import torch

from llava_runner.checks import MAX_SEED, real_number, whole_number
from llava_runner.contract import ModelCard
from llava_runner.errors import PromptError


class Sampler:
    """A way to choose tokens. Temperature 0 takes the most likely token; any other draws one at random.

    If ``top_p`` is below 1, only the most likely tokens are drawn from. A ``seed`` is an integer from 0 to 2^64 - 1;
    without one every run differs. The same seed gives the same tokens in this runner, and other tokens in the C++ one.

    Raises ``PromptError`` for a temperature that is negative or not finite, for ``top_p`` outside (0, 1], and for any
    other seed.
    """

    def __init__(
        self, *, temperature: SupportsFloat = 0.0, top_p: SupportsFloat = 1.0, seed: SupportsIndex | None = None
    ) -> None:
        self._temperature = real_number("temperature", temperature)
        self._top_p = real_number("top_p", top_p)
        if not 0 <= self._temperature < math.inf:
            raise PromptError(f"temperature {self._temperature:g}: it must be 0 (greedy) or more")
        if not 0 < self._top_p <= 1:
            raise PromptError(f"top_p {self._top_p:g}: it must be above 0 and at most 1")
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(whole_number("seed", seed, least=0, most=MAX_SEED, limit="2^64 - 1"))

    @classmethod
    def of(
        cls,
        card: ModelCard,
        *,
        temperature: SupportsFloat | None,
        top_p: SupportsFloat | None,
        seed: SupportsIndex | None,
    ) -> Sampler:
        """Return a sampler as a model's authors sample, but for what the caller chooses. Raises ``PromptError``."""
        own = card.generation
        return cls(
            temperature=own.temperature if temperature is None else temperature,
            top_p=own.top_p if top_p is None else top_p,
            seed=seed,
        )

    def sample(self, logits: torch.Tensor) -> int:
        """Return the id of a token chosen by the logits ``[vocab_size]``."""
        if self._temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self.probabilities(logits), 1, generator=self._generator))

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the probabilities ``float64 [vocab_size]`` that ``sample`` draws from. Temperature must be above 0.

        This is nucleus sampling (Holtzman et al., 2020): the least likely tokens get probability 0, as many as have at
        most ``1 - top_p`` together.
        """
        # Relative to the maximum and in double precision: then even the smallest temperature does not overflow.
        scores = (logits.double() - logits.max()) / self._temperature
        probabilities = scores.softmax(-1)
        if self._top_p < 1:
            ascending, order = probabilities.sort()
            in_tail = ascending.cumsum(-1) <= 1 - self._top_p
            in_tail[-1] = False  # keep the most likely token, however small top_p is
            probabilities[order[in_tail]] = 0
            probabilities /= probabilities.sum()
        return probabilities
