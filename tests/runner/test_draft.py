"""Prompt lookup, and how many tokens it guesses."""

from __future__ import annotations

import pytest

from llava_runner.draft import DraftLength, look_up


@pytest.mark.parametrize(
    ("ids", "most", "guess"),
    [
        ([], 7, []),
        ([1], 7, []),
        ([1, 1], 7, []),
        ([1, 2, 3, 4], 7, []),
        ([1, 2, 9, 3, 2], 7, []),  # one token alone says little
        ([1, 2, 3, 4, 1, 2], 7, [3, 4, 1, 2]),
        ([1, 2, 3, 4, 1, 2], 3, [3, 4, 1]),
        ([1, 2, 3, 4, 1, 2], 0, []),
        ([1, 2, 3, 4, 1, 2], -1, []),
        ([1, 2, 3, 1, 2, 4, 1, 2], 1, [4]),  # the newest time
        ([9, 1, 2, 3, 1, 2, 4, 9, 1, 2], 1, [3]),  # but the longest end comes first
        ([5, 5, 5], 7, [5]),
        ([5] * 40, 7, [5]),
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
    assert lengths_of(15, [99] * 5) == [3, 6, 12, 15, 15]
    assert lengths_of(7, [99] * 4) == [3, 6, 7, 7]
    assert lengths_of(2, [99] * 3) == [2, 2, 2]
    assert lengths_of(0, [99] * 3) == [0, 0, 0]


def test_guesses_become_as_long_as_the_last_was_right_and_one_more():
    assert lengths_of(15, [99, 99, 4, 1, 99, 99]) == [3, 6, 12, 5, 2, 4]


def test_after_wrong_guesses_none_is_made_for_longer_and_longer():
    lengths = lengths_of(7, [0] * 150)
    assert lengths[:3] == [3, 0, 2]
    pauses = [len(pause) for pause in "".join(map(str, lengths)).replace("3", "2").split("2")[1:]]
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 32, 32]


def test_a_right_guess_ends_the_caution():
    assert lengths_of(7, [0, 0, 0, 0, 0, 1, 0, 0, 0]) == [3, 0, 2, 0, 0, 2, 2, 0, 2]
