"""Numbers that callers give, and the room for a prompt. What does not fit is a ``PromptError`` that says why."""

from __future__ import annotations

import math
import operator
from typing import Any

from llava_runner.contract import ModelCard
from llava_runner.errors import PromptError

MAX_SEED = 2**64 - 1  # what the C++ runner takes
MAX_LOGPROBS = 100  # of the likeliest tokens in each place of an answer
TOO_LONG = "shorten it or start afresh"  # the advice where a context is full
MAX_THREADS = 1024  # far more only take memory, and end the process when that is used up


def whole_number(name: str, value: Any, *, least: int, most: int | None = None, limit: str = "") -> int:
    """Return ``value`` as an int if it is one by ``operator.index``, such as NumPy's integers, and in range.

    ``limit`` says in the message what ``most`` is. Raises ``PromptError``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise PromptError(f"{name} {value!r}: it must be a whole number") from None
    if number < least or (most is not None and number > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {limit or most}"
        raise PromptError(f"{name} {number}: it must be {allowed}")
    return number


def real_number(name: str, value: Any) -> float:
    """Return ``value`` as a float, also if it is NaN. Raises ``PromptError`` for what is no number, such as text."""
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)
    except OverflowError:  # an int beyond all floats
        return math.inf
    except (TypeError, ValueError, RuntimeError):  # a tensor with several elements raises a RuntimeError
        pass
    raise PromptError(f"{name} {value!r}: it must be a number")


def answer_limits(card: ModelCard, *, seq_len: int | None, max_new_tokens: int | None) -> tuple[int, int]:
    """Return the most positions that prompt and answer take together, and the most tokens of the answer.

    None stands for what the card says. Raises ``PromptError``.
    """
    context = card.max_context_len
    if seq_len is None:
        seq_len = context
    if max_new_tokens is None:
        max_new_tokens = card.generation.max_new_tokens or context
    return (
        whole_number("seq_len", seq_len, least=1, most=context, limit=f"the context, {context}"),
        whole_number("max_new_tokens", max_new_tokens, least=1),
    )


def check_room(what: str, *, then: str, start: int, end: int, limit: int, num_image_tokens: int = 0) -> None:
    """Raise ``PromptError`` if a text from position ``start`` to ``end`` leaves no position for what comes then.

    The message names both, such as "the prompt" and "the answer". The server knows it by its end.
    """
    if end < limit:
        return
    needed = f"{what} takes {end - start} positions"
    if num_image_tokens:
        needed += f" ({num_image_tokens} of them the image)"
    if start:
        needed += f" after the {start} of the conversation so far"
    raise PromptError(f"{needed} and {then} needs at least 1, but the limit is {limit}; {TOO_LONG}")
