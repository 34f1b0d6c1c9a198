"""The choice of the next token: the most likely one, or a sample. Order and arithmetic are those of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

import numpy as np

from llava_runner.checks import MAX_SEED, real_number, whole_number
from llava_runner.contract import ModelCard
from llava_runner.errors import PromptError

LARGEST_SCORE = np.finfo(np.float64).max


class Sampler:
    """A way to choose tokens. Temperature 0 takes the most likely token; any other draws one at random.

    A ``repetition_penalty`` above 1 makes tokens less likely that the conversation already has, one below 1 more likely
    (Keskar et al., 2019). It counts at temperature 0, too. The other options narrow what is drawn from, one after the
    other: ``top_k`` keeps so many of the most likely tokens, or all if it is 0; ``top_p`` the most likely ones that
    have this probability together (Holtzman et al., 2020); ``min_p`` those that are at least so many times as likely as
    the most likely one (Nguyen et al., 2024). A ``seed`` is an integer from 0 to 2^64 - 1; without one every run
    differs. The same seed gives the same tokens in this runner, and other tokens in the C++ one.

    Raises ``PromptError`` for a temperature that is negative or not finite, for ``top_p`` outside (0, 1], ``min_p``
    outside [0, 1], a negative ``top_k``, a ``repetition_penalty`` that is not above 0 or not finite, and any other
    seed.
    """

    def __init__(
        self,
        *,
        temperature: SupportsFloat = 0.0,
        top_p: SupportsFloat = 1.0,
        top_k: SupportsIndex = 0,
        min_p: SupportsFloat = 0.0,
        repetition_penalty: SupportsFloat = 1.0,
        seed: SupportsIndex | None = None,
    ) -> None:
        self.temperature = real_number("temperature", temperature)
        self.top_p = real_number("top_p", top_p)
        self.top_k = whole_number("top_k", top_k, least=0)
        self.min_p = real_number("min_p", min_p)
        self.repetition_penalty = real_number("repetition_penalty", repetition_penalty)
        if not 0 <= self.temperature < math.inf:
            raise PromptError(f"temperature {self.temperature:g}: it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p {self.top_p:g}: it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise PromptError(f"min_p {self.min_p:g}: it must be from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise PromptError(f"repetition_penalty {self.repetition_penalty:g}: it must be above 0")
        self.seed = None if seed is None else whole_number("seed", seed, least=0, most=MAX_SEED, limit="2^64 - 1")
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    @classmethod
    def of(
        cls,
        card: ModelCard,
        *,
        temperature: SupportsFloat | None = None,
        top_p: SupportsFloat | None = None,
        top_k: SupportsIndex | None = None,
        min_p: SupportsFloat | None = None,
        repetition_penalty: SupportsFloat | None = None,
        seed: SupportsIndex | None = None,
    ) -> Sampler:
        """Return a sampler as a model's authors sample, but for what the caller chooses. Raises ``PromptError``."""
        own = card.generation
        return cls(
            temperature=own.temperature if temperature is None else temperature,
            top_p=own.top_p if top_p is None else top_p,
            top_k=own.top_k if top_k is None else top_k,
            min_p=own.min_p if min_p is None else min_p,
            repetition_penalty=own.repetition_penalty if repetition_penalty is None else repetition_penalty,
            seed=seed,
        )

    def sample(self, logits: np.ndarray, context_ids: Sequence[int] = ()) -> int:
        """Return the id of a token chosen by the logits ``[vocab_size]`` after the tokens of a conversation."""
        if self.temperature == 0:
            return int(self._scores(logits, context_ids).argmax())
        cumulative = self.probabilities(logits, context_ids).cumsum()
        return int(cumulative.searchsorted(self._random.random() * cumulative[-1], side="right"))

    def probabilities(self, logits: np.ndarray, context_ids: Sequence[int] = ()) -> np.ndarray:
        """Return the probabilities ``float64 [vocab_size]`` that ``sample`` draws from. Temperature must be above 0."""
        scores = self._scores(logits, context_ids)
        # Relative to the maximum and in double precision: then even the smallest temperature does not overflow.
        with np.errstate(over="ignore"):
            weights = np.exp((scores - scores.max()) / self.temperature)
        if 0 < self.top_k < len(scores):
            weights[scores < np.partition(scores, -self.top_k)[-self.top_k]] = 0
        if self.top_p < 1:
            kept = np.flatnonzero(weights)
            ascending = kept[np.argsort(weights[kept], kind="stable")]
            in_tail = np.cumsum(weights[ascending] / weights.sum()) <= 1 - self.top_p
            in_tail[-1:] = False  # keep the most likely token, however small top_p is
            weights[ascending[in_tail]] = 0
        weights[weights < self.min_p] = 0  # the most likely token has weight 1
        return weights / weights.sum()

    def _scores(self, logits: np.ndarray, context_ids: Sequence[int]) -> np.ndarray:
        """Return the logits as ``float64 [vocab_size]``, with the repetition penalty."""
        scores = np.array(logits, dtype=np.float64)
        if self.repetition_penalty != 1:
            ids = np.unique(np.asarray(context_ids, dtype=np.int64))
            ids = ids[ids < len(scores)]
            seen = scores[ids]
            with np.errstate(over="ignore"):
                seen = np.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
            scores[ids] = np.minimum(seen, LARGEST_SCORE)  # infinity would have no probability
        return scores
