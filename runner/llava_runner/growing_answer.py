"""How an answer grows by one token after the other, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llava_runner.answer import AnswerSoFar, StopReason
from llava_runner.logprobs import token_logprobs
from llava_runner.stop_strings import StopStrings
from llava_runner.timings import Timings
from llava_runner.tokenizer import TextStream


class GrowingAnswer(AnswerSoFar):
    """An answer that grows by tokens.

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
        super().__init__(timings=timings, has_logprobs=logprobs is not None)
        self._stream = stream
        self._stops = stops
        self._eos_ids = eos_ids
        self._budget = budget
        self._reason = reason
        self._num_likely = logprobs or 0

    @property
    def room(self) -> int:
        """The number of tokens that may still come."""
        return self._budget - len(self.ids)

    def add(self, token_id: int, logits: np.ndarray) -> str:
        """Add a token that was chosen by logits ``[vocab_size]``. It may be the last.

        Returns the text that can be shown by now, which is often none.
        """
        if self.logprobs is not None:
            with self.timings.sample.measure(0):
                self.logprobs.append(token_logprobs(logits, token_id, count=self._num_likely))
        self.ids.append(token_id)
        if token_id in self._eos_ids:
            return self.end("eos")
        text = self._stream.push(token_id)
        text = self._stops.push(text, hidden=self._stream.dropped)
        self.texts.append(text)
        if self._stops.found:
            self.stop_reason = "stop"
        elif len(self.ids) == self._budget:
            text += self.end(self._reason)
        return text

    def end(self, reason: StopReason) -> str:
        """End the answer. Return what was left of its text."""
        text = self._stops.finish(self._stream.flush())
        self.texts.append(text)
        self.stop_reason = "stop" if self._stops.found else reason
        return text
