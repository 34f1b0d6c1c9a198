"""The options of an answer: as the methods of a session take them, and as a conversation gets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from llava_runner.checks import MAX_LOGPROBS, answer_limits, whole_number
from llava_runner.contract import ModelCard
from llava_runner.draft import DRAFT_MAX, DRAFT_MAX_AT_MOST
from llava_runner.sampler import Sampler
from llava_runner.stop_strings import checked_stops

LogitsProcessor = Callable[[Sequence[int], np.ndarray], None]


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
    logits_processor: LogitsProcessor | None
    draft_max: int | None
    seq_len: int | None
    image_aspect_ratio: str | None


@dataclass(frozen=True)
class CheckedOptions:
    """Options that are possible, with a model's own where the caller left them out. They are for one answer."""

    sampler: Sampler
    stops: tuple[str, ...]
    seq_len: int
    max_new_tokens: int
    logprobs: int | None
    logits_processor: LogitsProcessor | None
    draft_max: int
    image_aspect_ratio: str | None

    @classmethod
    def of(
        cls,
        card: ModelCard,
        *,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
        logits_processor: LogitsProcessor | None = None,
        draft_max: int | None = None,
        max_new_tokens: int | None = None,
        seq_len: int | None = None,
        image_aspect_ratio: str | None = None,
        **sampling: float | None,
    ) -> CheckedOptions:
        """Check ``AnswerOptions`` for a model. Raises ``PromptError`` for what is not possible."""
        sampler = Sampler.of(card, **sampling)  # type: ignore[arg-type]
        seq_len, max_new_tokens = answer_limits(card, seq_len=seq_len, max_new_tokens=max_new_tokens)
        if logprobs is not None:
            logprobs = whole_number("logprobs", logprobs, least=0, most=MAX_LOGPROBS)
        draft_max = DRAFT_MAX if draft_max is None else draft_max
        return cls(
            sampler=sampler,
            stops=checked_stops(stop),
            seq_len=seq_len,
            max_new_tokens=max_new_tokens,
            logprobs=logprobs,
            logits_processor=logits_processor,
            draft_max=whole_number("draft_max", draft_max, least=0, most=DRAFT_MAX_AT_MOST),
            image_aspect_ratio=image_aspect_ratio,
        )
