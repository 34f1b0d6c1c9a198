"""An answer: what a session returns of it when asked, and as it grows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from llava_runner.logprobs import TokenLogprobs
from llava_runner.timings import Timings

StopReason = Literal["eos", "stop", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Answer:
    """An answer as far as it has come.

    ``ids`` are its token ids, with the end-of-sequence token if it has come. ``text`` is all the text in whole
    characters, before a stop string and before what may become one. ``timings`` says how long each stage took.
    ``stop_reason`` is None until the answer ends, then ``"eos"``, ``"stop"`` (a stop string has come), ``"length"``
    (``max_new_tokens`` or ``seq_len`` is reached), ``"context"`` (the KV cache is full) or ``"cancelled"``.
    ``logprobs`` has an entry for each token if they were asked for, and is None otherwise.
    """

    ids: tuple[int, ...]
    text: str
    timings: Timings
    stop_reason: StopReason | None
    logprobs: tuple[TokenLogprobs, ...] | None = None


class AnswerSoFar:
    """An answer that grows."""

    def __init__(self, *, timings: Timings, has_logprobs: bool = False) -> None:
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] | None = [] if has_logprobs else None
        self.timings = timings
        self.stop_reason: StopReason | None = None

    @classmethod
    def whole(cls, ids: list[int], text: str, *, timings: Timings) -> AnswerSoFar:
        """Return an answer that has ended, as if the model had come to its end."""
        answer = cls(timings=timings)
        answer.ids, answer.texts, answer.stop_reason = ids, [text], "eos"
        return answer

    def now(self) -> Answer:
        """Return what has come so far. Other threads than the one that adds to it may call this, too."""
        reason = self.stop_reason  # read first: where there is one, the rest is complete
        ids = tuple(self.ids)
        logprobs = None if self.logprobs is None else tuple(self.logprobs[: len(ids)])
        return Answer(ids, "".join(self.texts), copy.deepcopy(self.timings), reason, logprobs)
