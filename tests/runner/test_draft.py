"""Prompt lookup, and how many tokens it guesses."""

from __future__ import annotations

from itertools import pairwise

import pytest

from llava_runner.draft import DraftLength, look_up


@pytest.mark.parametrize(
    ("ids", "most", "guess"),
    [
        ([], 7, []),
        ([1], 7, []),
        ([1, 1], 7, []),
        ([1, 2, 3, 4], 7, []),
        ([1, 2, 9, 3, 1, 2], 7, []),  # two tokens say little
        ([1, 2, 3, 4, 1, 2, 3], 7, [4, 1, 2, 3, 4, 1, 2]),  # all that followed, and again
        ([1, 2, 3, 4, 1, 2, 3], 3, [4, 1, 2]),
        ([1, 2, 3, 4, 1, 2, 3], 0, []),
        ([1, 2, 3, 4, 1, 2, 3], -1, []),
        ([1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 3], 1, [9]),  # the newest time
        ([7, 1, 2, 3, 8, 1, 2, 3, 9, 7, 1, 2, 3], 1, [8]),  # but the longest end comes first
        ([5, 5, 5], 4, []),
        ([5, 5, 5, 5], 4, [5, 5, 5, 5]),
        ([5] * 40, 4, [5, 5, 5, 5]),
        ([9, 1, 2, 3, 1, 2, 3, 1], 7, [2, 3, 1, 2, 3, 1, 2]),
    ],
)
def test_what_followed_the_longest_end_before_is_guessed(ids, most, guess):
    assert look_up(ids, most) == guess


def test_an_end_of_sixteen_tokens_is_long_enough():
    end = list(range(100, 117))
    ids = [*end, 1, 8, *end[1:], 2, *end]
    assert look_up(ids, 1) == [2]  # although all 17 were there before
    assert look_up([*end, 1, 8, *end[2:], 2, *end], 1) == [1]


def lengths_of(most, rights):
    """Return how long guesses are if so many of their tokens are right, as far as they are so long."""
    length, lengths = DraftLength(most), []
    for right in rights:
        lengths.append(guessed := length.next())
        if guessed:
            length.record(guessed=guessed, right=min(right, guessed))
    return lengths


def test_guesses_grow_while_they_are_right():
    lengths = lengths_of(15, [99] * 12)
    assert lengths == sorted(lengths) and 2 <= lengths[0] <= 4 and lengths[-1] == 15
    assert lengths_of(2, [99] * 3) == [2, 2, 2]
    assert lengths_of(0, [99] * 3) == [0, 0, 0]


def test_guesses_become_shorter_where_fewer_are_right():
    lengths = lengths_of(15, [99] * 12 + [1] * 12)
    assert lengths[11] == 15 and 0 < lengths[-1] <= 4


def test_where_none_pays_none_is_made_for_longer_and_longer():
    lengths = lengths_of(7, [0] * 300)
    guesses = [i for i, length in enumerate(lengths) if length]
    pauses = [later - earlier - 1 for earlier, later in pairwise(guesses)]
    assert lengths[0] == 4 and set(lengths[1:]) == {0, 2}
    assert pauses == sorted(pauses) and pauses[-2:] == [64, 64] and len(guesses) < 10


def test_a_right_guess_ends_the_pauses():
    lengths = lengths_of(7, [0] * 40 + [7] * 300)
    assert lengths[-20:] == [7] * 20
