"""Mistakes that a user of the exporter can make. Command lines print each in one line and exit with code 2.

The mistakes of a user of the runner are in ``llava_runner.errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from llava_runner.errors import UserError

Result = TypeVar("Result")


SHOWN = 5  # names in a message
NAMED = 4  # keys in a message, before it counts the rest


class ConfigError(UserError):
    """A model name or a ``config.json`` that this project cannot turn into a model."""


class CheckpointError(UserError):
    """Weights or tokenizer files that are missing, damaged, or do not fit ``config.json``."""


class SeveralReasons(CheckpointError, ConfigError):
    """A checkpoint with several mistakes, each of which is a line of the message."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__(reasons)  # what a copy in another process is made of
        self.reasons = reasons

    def __str__(self) -> str:
        """Return the lines of the message."""
        return "\n".join(self.lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """The number of reasons, and each reason."""
        return (f"the checkpoint is refused for {len(self.reasons)} reasons:", *(f"- {it}" for it in self.reasons))


class Reasons:
    """Collects mistakes that do not depend on each other, so that the user learns of all at once."""

    def __init__(self) -> None:
        self._errors: list[UserError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    def add(self, *errors: UserError) -> None:
        """Add mistakes."""
        self._errors.extend(errors)

    def result(self, function: Callable[[], Result]) -> Result | None:
        """Return what a function returns, or None if it raises a ``UserError``, which is added."""
        try:
            return function()
        except UserError as error:
            self.add(error)
            return None

    def raise_any(self) -> None:
        """Raise the mistake if there is one, and ``SeveralReasons`` if there are more."""
        texts = dict.fromkeys(
            text
            for error in self._errors
            for text in (error.reasons if isinstance(error, SeveralReasons) else (str(error),))
        )
        if len(texts) > 1:
            raise SeveralReasons(tuple(texts))
        if self._errors:
            raise self._errors[0]


def check_all(*checks: Callable[[], object]) -> None:
    """Call all functions. Raise the mistake that one raises, and ``SeveralReasons`` if there are more."""
    reasons = Reasons()
    for check in checks:
        reasons.result(check)
    reasons.raise_any()


class RecipeError(UserError):
    """A quantization recipe that cannot be applied to the model."""


class CalibrationError(UserError):
    """Samples that nothing can be calibrated with: files without any, damaged ones, or images that are missing."""


class ExportError(UserError):
    """An export that cannot be done as asked: its lengths, output folder or file name, or a file that is no export."""


class CorpusError(UserError):
    """A text that no model can be measured on: a file that is none, too short, or of another vocabulary."""


class DatasetError(UserError):
    """A data set, or a file of results, that cannot be used, or an evaluation that cannot be done as asked."""


def first_of(items: Sequence[str]) -> str:
    """Return the first items as text, and how many more there are."""
    more = len(items) - NAMED
    return ", ".join(items[:NAMED]) + (f", and {more} more" if more > 0 else "")


def some(names: Sequence[str], noun: str) -> str:
    """Return a number of things with the first of their names, and the verb: "3 ids (a, b, c) are"."""
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"1 {noun} ({shown}) is" if len(names) == 1 else f"{len(names)} {noun}s ({shown}) are"
