"""Texts that end an answer: it is shown up to the first of them."""

from __future__ import annotations

from collections.abc import Sequence

from llava_runner.errors import PromptError

MAX_STOP_STRINGS = 16


class StopStrings:
    """The text of an answer on its way to the reader, who gets what stands before the first stop string.

    ``found`` is set by the token that completes a stop string, which is the same as that of transformers'
    ``StopStringCriteria``. Text that may be the beginning of a stop string is held back until this is known.
    """

    def __init__(self, stop: str | Sequence[str] | None = None) -> None:
        """Take one stop string, or several. Raises ``PromptError`` for what is none, and for more than 16."""
        self._stops = checked_stops(stop)
        self.found = False
        self._held = ""  # the end of the text, as far as it is held back
        self._hidden = 0  # how many characters at the beginning of it are never shown

    def push(self, text: str, *, hidden: str = "") -> str:
        """Add the text of one more token, and return what can be shown by now.

        ``hidden`` comes before it: text that may be a part of a stop string, but is not shown.
        """
        self._held += hidden + text
        self._hidden += len(hidden)
        # The first that is complete counts, and of those that end together the longest.
        ends = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            return self._release(min(ends)[1])
        return self._release(len(self._held) - self._undecided())

    def finish(self, text: str) -> str:
        """Add the last text, and return all that is left to show."""
        shown = self.push(text)
        return shown if self.found else shown + self._release(len(self._held))

    def _undecided(self) -> int:
        """Return how many characters at the end of the text may begin a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, end: int) -> str:
        """Return the text that is held back up to a place, and hold only the rest."""
        shown, self._held = self._held[self._hidden : end], self._held[end:]
        self._hidden = max(0, self._hidden - end)
        return shown


def checked_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return stop strings as a tuple. Raises ``PromptError`` for what cannot be one, and for more than 16."""
    is_one = isinstance(stop, (str, bytes)) or not isinstance(stop, Sequence)
    stops: tuple[object, ...] = () if stop is None else (stop,) if is_one else tuple(stop)
    if len(stops) > MAX_STOP_STRINGS:
        raise PromptError(f"there are {len(stops)} stop strings; at most {MAX_STOP_STRINGS} are taken")
    return tuple(map(_checked, stops))


def _checked(stop: object) -> str:
    """Return a stop string. Raises ``PromptError`` for what cannot be one."""
    if not isinstance(stop, str):
        raise PromptError(f"a stop string is {type(stop).__name__}, and must be text")
    if not stop:
        raise PromptError("a stop string is empty")
    try:
        content = stop.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"a stop string is not valid Unicode at character {error.start}") from None
    if b"\0" in content:  # which the C++ engine cannot take
        raise PromptError(f"a stop string has a zero byte, at byte {content.index(0)}")
    return stop
