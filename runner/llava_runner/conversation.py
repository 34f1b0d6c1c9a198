"""What a session needs of whatever computes its answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from llava_runner.answer import AnswerSoFar, StopReason
from llava_runner.answer_options import CheckedOptions
from llava_runner.contract import ModelCard
from llava_runner.engine_library import EngineName
from llava_runner.image.kinds import ImageSource
from llava_runner.timings import Stage


class Conversation(Protocol):
    """One conversation with a model: it reads turns, and computes answers. One thread at a time may use it.

    ``ModelConversation`` computes with a model in Python, ``EngineConversation`` with the C++ runner.
    """

    engine: EngineName
    card: ModelCard
    load: Stage  # the time that loading took

    @property
    def position(self) -> int:
        """The number of positions that the conversation takes. Any thread may ask."""
        ...

    def begin(
        self, images: Sequence[ImageSource], text: str, *, is_question: bool, options: CheckedOptions
    ) -> AnswerSoFar:
        """Read a turn, and return its answer, which has no token yet.

        A question is the next turn; any other text is a prompt, which begins a new conversation. Raises
        ``PromptError`` and ``ImageError`` before the model runs, and then the conversation is as it was.
        """
        ...

    def next(self) -> str:
        """Add the next token to the newest answer. Return the text that can be shown by now, which is often none."""
        ...

    def end(self, reason: StopReason) -> str:
        """End the newest answer. Return what was left of its text."""
        ...

    def set_answer(self, text: str) -> AnswerSoFar:
        """Put a text in place of the newest answer, as if the model had written it. Return it as an answer.

        Raises ``PromptError`` for text that does not fit into the context.
        """
        ...

    def forget(self) -> None:
        """Begin with an empty conversation."""
        ...

    def save(self, path: str | os.PathLike[str] | None = None) -> bytearray | None:
        """Keep the conversation in a file, or return it if no path is given. Raises ``StateError``."""
        ...

    def restore(self, saved: str | os.PathLike[str] | bytes | bytearray) -> None:
        """Go on with a conversation that ``save`` kept. Raises ``StateError``, and stays as it was."""
        ...

    def close(self) -> None:
        """Free the model's memory. Nothing but ``position`` may be asked for afterwards."""
        ...
