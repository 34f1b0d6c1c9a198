"""An answer: what a session returns of it when asked, and how it grows by one token after the other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llava_runner.timings import Timings
from llava_runner.tokenizer import TextStream

StopReason = Literal["eos", "length", "context", "cancelled"]


@dataclass(frozen=True)
class Answer:
    """An answer as far as it has come.

    ``ids`` are its token ids, with the end-of-sequence token if it has come. ``text`` is all the text in whole
    characters. ``timings`` says how long each stage took. ``stop_reason`` is None until the answer ends, then
    ``"eos"``, ``"length"`` (``max_new_tokens`` or ``seq_len`` is reached), ``"context"`` (the KV cache is full) or
    ``"cancelled"``.
    """

    ids: tuple[int, ...]
    text: str
    timings: Timings
    stop_reason: StopReason | None


class AnswerSoFar:
    """An answer that grows. It ends with a token of ``eos_ids``, or after ``budget`` tokens for ``reason``."""

    def __init__(
        self,
        stream: TextStream,
        *,
        timings: Timings,
        eos_ids: Sequence[int],
        budget: int,
        reason: StopReason,
    ) -> None:
        self.timings = timings
        self.ids: list[int] = []
        self.stop_reason: StopReason | None = None
        self._stream = stream
        self._eos_ids = eos_ids
        self._budget = budget
        self._reason = reason
        self._texts: list[str] = []

    def add(self, token_id: int) -> str:
        """Add a token, which may be the last. Return the characters that it completes, which are often none."""
        self.ids.append(token_id)
        if token_id in self._eos_ids:
            return self.end("eos")
        text = self._stream.push(token_id)
        self._texts.append(text)
        return text + self.end(self._reason) if len(self.ids) == self._budget else text

    def end(self, reason: StopReason) -> str:
        """End the answer. Return what was left of its text."""
        text = self._stream.flush()
        self._texts.append(text)
        self.stop_reason = reason
        return text

    def now(self) -> Answer:
        """Return what has come so far. Other threads may call this, too."""
        reason = self.stop_reason  # read first: where there is one, the rest is complete
        return Answer(tuple(self.ids), "".join(self._texts), copy.deepcopy(self.timings), reason)
