"""How likely the tokens of an answer were for the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Logprob:
    """A token and the natural logarithm of its probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs(Logprob):
    """A token of an answer, and the tokens that were the most likely in its place, the most likely first."""

    top: tuple[Logprob, ...]


def token_logprobs(logits: np.ndarray, token_id: int, *, count: int) -> TokenLogprobs:
    """Return how likely a token was by the model's own logits ``[vocab_size]``, and the ``count`` most likely ones.

    Tokens without any probability are left out of the latter.
    """
    scores = np.array(logits, dtype=np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    likeliest: list[int] = np.argsort(-np.asarray(logits), kind="stable")[:count].tolist() if count else []
    top = tuple(Logprob(i, float(scores[i])) for i in likeliest if scores[i] > -np.inf)
    return TokenLogprobs(token_id, float(scores[token_id]), top)
