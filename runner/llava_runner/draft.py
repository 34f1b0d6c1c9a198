"""Guesses of the next tokens of an answer, which one call of the text decoder checks."""

from __future__ import annotations

from collections.abc import Sequence

from llava_runner.contract import MAX_LOGITS_TO_KEEP

DRAFT_MAX = 7  # tokens to guess at a time; with the newest one eight rows, as many as processors compute at a time
DRAFT_MAX_AT_MOST = MAX_LOGITS_TO_KEEP - 1

LEAST_MATCH = 3  # tokens; what followed fewer says little of what will
MOST_MATCH = 16  # a longer one is no surer, and in a text of one token each place would take long
TRIED = 2  # guesses of a draft that does not pay, to see if it does now
SHORTEST_PAUSE, LONGEST_PAUSE = 2, 64  # tokens
FADED, REMEMBERED = 0.9, 10  # of what was known, so much counts after a guess: a share, and so many tokens
# What a guess costs, in calls without one: the first, and each further one (docs/BENCHMARKS.md, "Guessed tokens").
FIRST_COST, FURTHER_COST = 0.3, 0.045


def look_up(ids: Sequence[int], most: int) -> list[int]:
    """Return ``most`` tokens that are likely to follow ``ids``, but often none.

    They are those that followed the longest end of ``ids``, of three tokens or more, that occurred before; the newest
    time, if there were several. Where too few followed, they repeat. This is prompt lookup decoding (Saxena, 2023).
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
    return [ids[follows + i % (size - follows)] for i in range(most)] if follows else []


class DraftLength:
    """How many tokens to guess: as many as pay by what was right lately.

    A draft that does not pay is tried again after pauses that become longer.
    """

    def __init__(self, most: int) -> None:
        """Begin with a few tokens. At most ``most`` are guessed at a time."""
        self._most = most
        self._checked = 2.0  # tokens that were guessed, the newer the more they count
        self._right = 1.0  # and came. At first one of two, which is better than nothing
        self._wait = 0  # tokens before the next guess
        self._pause = SHORTEST_PAUSE  # tokens to wait after the next guess that shows that none pays

    def next(self) -> int:
        """Return how many tokens to guess before the next one is computed."""
        if self._wait > 0:
            self._wait -= 1
            return 0
        return max(self._best(), min(TRIED, self._most))

    def record(self, *, guessed: int, right: int) -> None:
        """Learn how many tokens of a guess, which was not empty, were right."""
        kept = min(FADED, REMEMBERED / self._checked)
        self._checked = self._checked * kept + right + (right < guessed)
        self._right = self._right * kept + right
        if self._best():
            self._pause = SHORTEST_PAUSE
            return
        self._wait = self._pause
        self._pause = min(4 * self._pause, LONGEST_PAUSE)

    def _best(self) -> int:
        """Return how many guesses give most tokens for their cost; 0 if none pays."""
        chance = self._right / self._checked  # that one is right, if those before it were
        all_right = tokens = most_for_cost = 1.0
        length = 0
        for guessed in range(1, self._most + 1):
            all_right *= chance
            tokens += all_right
            for_cost = tokens / (1 + FIRST_COST + FURTHER_COST * (guessed - 1))
            if for_cost > most_for_cost:
                most_for_cost, length = for_cost, guessed
        return length
