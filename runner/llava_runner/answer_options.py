"""The options of an answer, as the methods of a session take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class AnswerOptions(TypedDict, total=False):
    """Keyword arguments of ``Session.generate``, ``chat`` and ``ask``. What is left out, or None, has its default.

    ``Session.generate`` explains them.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    seq_len: int | None
    image_aspect_ratio: str | None
