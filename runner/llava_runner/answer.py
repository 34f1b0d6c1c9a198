"""An answer: what a session returns of it when asked, and how it grows by one token after the other."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llava_runner.logprobs import TokenLogprobs, token_logprobs
from llava_runner.stop_strings import StopStrings
from llava_runner.timings import Timings
from llava_runner.tokenizer import TextStream

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
    """An answer that grows.

    It ends with a token of ``eos_ids`` or one that completes a stop string, or after ``budget`` tokens for ``reason``.
    ``logprobs`` is the number of likely tokens to keep beside each, or None to keep no probabilities.
    """

    def __init__(
        self,
        stream: TextStream,
        stops: StopStrings,
        *,
        timings: Timings,
        eos_ids: Sequence[int],
        budget: int,
        reason: StopReason,
        logprobs: int | None = None,
    ) -> None:
        self.timings = timings
        self.ids: list[int] = []
        self.stop_reason: StopReason | None = None
        self._stream = stream
        self._stops = stops
        self._eos_ids = eos_ids
        self._budget = budget
        self._reason = reason
        self._texts: list[str] = []
        self._num_logprobs = logprobs
        self._logprobs: list[TokenLogprobs] = []

    def add(self, token_id: int, logits: np.ndarray) -> str:
        """Add a token that was chosen by logits ``[vocab_size]``. It may be the last.

        Returns the text that can be shown by now, which is often none.
        """
        if self._num_logprobs is not None:
            with self.timings.sample.measure(0):
                self._logprobs.append(token_logprobs(logits, token_id, count=self._num_logprobs))
        self.ids.append(token_id)
        if token_id in self._eos_ids:
            return self.end("eos")
        text = self._stream.push(token_id)
        text = self._stops.push(text, hidden=self._stream.dropped)
        self._texts.append(text)
        if self._stops.found:
            self.stop_reason = "stop"
        elif len(self.ids) == self._budget:
            text += self.end(self._reason)
        return text

    def end(self, reason: StopReason) -> str:
        """End the answer. Return what was left of its text."""
        text = self._stops.finish(self._stream.flush())
        self._texts.append(text)
        self.stop_reason = "stop" if self._stops.found else reason
        return text

    def now(self) -> Answer:
        """Return what has come so far. Other threads may call this, too."""
        reason = self.stop_reason  # read first: where there is one, the rest is complete
        ids = tuple(self.ids)
        logprobs = None if self._num_logprobs is None else tuple(self._logprobs[: len(ids)])
        return Answer(ids, "".join(self._texts), copy.deepcopy(self.timings), reason, logprobs)
