"""Finds for each request the conversation that it goes on with, so that nothing is read twice."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from llava_runner.answer_options import AnswerOptions
from llava_runner.errors import StateError, UserError
from llava_runner.serve.turns import Dialogue, Question, Turn
from llava_runner.session import Session

if TYPE_CHECKING:
    from typing import Unpack  # since Python 3.11; others only read the code

Turns = tuple[Turn, ...]
Source = Literal["live", "saved", "none"]


@dataclass(frozen=True)
class Reading:
    """What was read for an answer: positions, and the time they took in milliseconds.

    ``source`` says where the turns before were found: in the KV cache, among the saved conversations, or nowhere.
    ``prompt_tokens`` are the positions of the whole conversation, ``prompt_n`` those that were read now.
    """

    source: Source
    prompt_tokens: int = 0
    image_n: int = 0
    image_ms: float = 0.0
    prompt_n: int = 0
    prompt_ms: float = 0.0

    @property
    def cached_tokens(self) -> int:
        """The positions that were read for an earlier answer."""
        return max(0, self.prompt_tokens - self.prompt_n)


class Conversations:
    """The conversation in a session, and earlier ones that were saved: the last used, as many as fit.

    One thread uses it, and nothing else uses the session. Of one request, ``begin`` is called, then all pieces are
    taken, then ``finish`` is called, or ``forget`` where something failed.
    """

    def __init__(self, session: Session, *, most_bytes: int) -> None:
        """Take over a session. Saved conversations take at most ``most_bytes`` together; with 0 none is saved."""
        self._session = session
        self._most_bytes = most_bytes
        self._live: Turns = ()
        self._asked: tuple[Turns, Question] | None = None  # what is being answered
        self._saved: OrderedDict[Turns, bytearray] = OrderedDict()
        self._bytes_a_position = 0.0  # of a saved conversation, once there was one
        self.bytes = 0  # that saved conversations take

    @property
    def saved(self) -> int:
        """The number of saved conversations."""
        return len(self._saved)

    def begin(
        self, dialogue: Dialogue, *, before_turn: Callable[[], None] = lambda: None, **options: Unpack[AnswerOptions]
    ) -> tuple[Iterator[str], Reading]:
        """Read what is new in a dialogue. Return the pieces of the answer, and what was read for it.

        ``before_turn`` is called before each turn is read. If it raises an exception, the turns that were read stay
        known. Raises ``PromptError`` and ``ImageError``.
        """
        before_turn()
        source = self._go_to(dialogue)
        reading = Reading(source)
        for turn in dialogue.past[len(self._live) :]:
            reading = self._replay(turn, reading)
            before_turn()
        try:
            pieces = self._chat(dialogue.question, **options)
        except UserError:
            raise  # and the session is as it was
        except BaseException:
            self.forget()
            raise
        self._asked = (self._live, dialogue.question)
        return pieces, replace(self._added(reading), prompt_tokens=self._session.position)

    def finish(self) -> None:
        """Take the answer, as far as it has come, into the conversation."""
        if self._asked is not None:
            past, question = self._asked
            self._asked = None
            answer = self._session.last
            if answer.stop_reason == "stop":  # the model has read the stop string, which no later request has
                try:
                    self._session.set_answer(answer.text)
                except UserError:  # there is no room
                    self.forget()
                    return
            self._live = (*past, Turn(question, answer.text).remembered())

    def forget(self) -> None:
        """Forget the conversation in the session."""
        self._live, self._asked = (), None
        self._session.reset()

    def _go_to(self, dialogue: Dialogue) -> Source:
        """Bring the session to the longest beginning of a dialogue that is known. Return where it was found."""
        past = dialogue.past
        in_cache = len(self._live) if self._begins_with(past, self._live) else 0
        found = max((turns for turns in self._saved if self._begins_with(past, turns)), key=len, default=())
        if in_cache and in_cache >= len(found):
            return "live"
        if self._live[:-1] != past or (self._live[-1:] and self._live[-1].question != dialogue.question):
            self._save()  # which is not worth while if its last question is only asked again
        if found and self._restore(found):
            return "saved"
        if self._live:
            self.forget()
        return "none"

    @staticmethod
    def _begins_with(turns: Turns, beginning: Turns) -> bool:
        return turns[: len(beginning)] == beginning

    def _replay(self, turn: Turn, reading: Reading) -> Reading:
        """Read a turn that another process had, or that was forgotten. Return what was read so far."""
        try:
            self._chat(turn.question)
            reading = self._added(reading)
            self._session.set_answer(turn.answer)
        except BaseException:
            self.forget()
            raise
        self._live = (*self._live, turn.remembered())
        return reading

    def _chat(self, question: Question, **options: Unpack[AnswerOptions]) -> Iterator[str]:
        """Read a question. Return the pieces of its answer."""
        images = [image.pixels for image in question.images if image.pixels is not None]
        return self._session.chat(question.text, image=images or None, **options)

    def _added(self, reading: Reading) -> Reading:
        """Return what was read, with the session's newest turn."""
        timings = self._session.last.timings
        return replace(
            reading,
            image_n=reading.image_n + timings.image.count,
            image_ms=reading.image_ms + timings.image.ms,
            prompt_n=reading.prompt_n + timings.prompt.count,
            prompt_ms=reading.prompt_ms + timings.prompt.ms,
        )

    def _save(self) -> None:
        """Keep the conversation in the session, if the engine can and there is room."""
        positions = self._session.position
        if not self._live or self._live in self._saved or positions * self._bytes_a_position >= self._most_bytes:
            return  # what would not fit is not made, either: it may be large
        try:
            content = self._session.save() or bytearray()
        except (StateError, MemoryError):
            return
        self._bytes_a_position = len(content) / positions
        if len(content) > self._most_bytes:
            return
        self._saved[self._live] = content
        self.bytes += len(content)
        while self.bytes > self._most_bytes:
            self._drop(next(iter(self._saved)))

    def _restore(self, turns: Turns) -> bool:
        """Go on with a saved conversation. Return whether that was possible."""
        content = self._drop(turns)
        try:
            self._session.restore(content)
        except StateError:
            return False
        self._live = turns
        return True

    def _drop(self, turns: Turns) -> bytearray:
        """Return a saved conversation, which is kept no longer."""
        content = self._saved.pop(turns)
        self.bytes -= len(content)
        return content
