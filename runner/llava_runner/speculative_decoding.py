"""Decoding with guesses ahead: one call computes a token and checks several (Leviathan et al., 2023)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llava_runner.draft import DraftLength
from llava_runner.model import ModelWithCard


class SpeculativeDecoding:
    """The decoding of one answer. Of ``drafted`` tokens that were guessed, ``accepted`` have come."""

    def __init__(self, draft_max: int) -> None:
        """Begin an answer. At most ``draft_max`` tokens are guessed at a time."""
        self.drafted = 0
        self.accepted = 0
        self._length = DraftLength(draft_max)
        self._guessed: list[int] = []  # the newest guess
        self._logits: np.ndarray = np.empty((0, 0), np.float32)  # [T, vocab_size], after each of its tokens
        self._right = 0  # how many of them have come
        self._is_over = True  # all have come, or another token

    def logits_after(
        self, model: ModelWithCard, token_id: int, *, position: int, room: int, guess: Callable[[int], list[int]]
    ) -> np.ndarray:
        """Return the logits ``float32 [vocab_size]`` after a token whose place is ``position``.

        If the token was guessed, they were computed before. Otherwise the model reads it, and behind it what ``guess``
        returns, which is called with the most tokens that it may guess: no more than ``room``.
        """
        if not self._is_over:
            is_right = self._guessed[self._right] == token_id
            self._right += is_right
            self._is_over = not is_right or self._right == len(self._guessed)
            if self._is_over:
                self._length.record(guessed=len(self._guessed), right=self._right)
            if is_right:
                self.accepted += 1
                return self._logits[self._right - 1]
        room = min(room, model.card.logits_to_keep - 1)
        most = min(room, self._length.next()) if room > 0 else 0
        guessed = guess(most) if most > 0 else []
        logits = model.verify(model.embed([token_id, *guessed]), position=position).numpy()
        self.drafted += len(guessed)
        self._guessed, self._logits, self._right, self._is_over = guessed, logits[1:], 0, not guessed
        return logits[0]
