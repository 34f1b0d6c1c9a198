"""Guesses of the next tokens of an answer, which one call of the text decoder checks."""

from __future__ import annotations

from collections.abc import Sequence

from llava_runner.contract import MAX_LOGITS_TO_KEEP

DRAFT_MAX = 7  # tokens to guess at a time; with the newest one eight rows, as many as processors compute at a time
DRAFT_MAX_AT_MOST = MAX_LOGITS_TO_KEEP - 1

LEAST_MATCH = 2  # tokens; what followed one alone says little of what will
MOST_MATCH = 16  # a longer one is no surer, and in a text of one token each place would take long
FIRST, SHORTEST = 3, 2  # guesses: the second row of a call costs most
LONGEST_PAUSE = 32  # tokens


def look_up(ids: Sequence[int], most: int) -> list[int]:
    """Return at most ``most`` tokens that are likely to follow ``ids``. Often there are none.

    They are those that followed the longest end of ``ids``, of two tokens or more, that occurred before; the newest
    time, if there were several. This is prompt lookup decoding (Saxena, 2023).
    """
    if most <= 0:
        return []
    size, longest, follows = len(ids), LEAST_MATCH - 1, 0
    for end in range(size - 1, LEAST_MATCH - 1, -1):
        if ids[end - 1] != ids[-1]:  # most places end here
            continue
        length = 1
        while length < min(end, MOST_MATCH) and ids[end - 1 - length] == ids[size - 1 - length]:
            length += 1
        if length > longest:
            longest, follows = length, end
        if longest == MOST_MATCH:
            break
    return list(ids[follows : follows + most]) if follows else []


class DraftLength:
    """How many tokens to guess.

    To check a wrong guess costs time, so it depends on how many were right lately, and after wrong ones none is guessed
    for a while.
    """

    def __init__(self, most: int) -> None:
        """Begin with a few tokens. ``most`` are guessed at a time."""
        self._most = most
        self._length = min(most, FIRST)  # of the next guess
        self._wait = 0  # tokens before it
        self._pause = 1  # tokens to wait after the next wrong guess

    def next(self) -> int:
        """Return how many tokens to guess before the next one is computed."""
        if self._wait > 0:
            self._wait -= 1
            return 0
        return self._length

    def record(self, *, guessed: int, right: int) -> None:
        """Learn how many tokens of a guess, which was not empty, were right."""
        if right == 0:
            self._length = min(SHORTEST, self._most)
            self._wait = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return
        self._pause = 1
        length = max(self._length, 2 * guessed) if right == guessed else max(right + 1, SHORTEST)
        self._length = min(length, self._most)
