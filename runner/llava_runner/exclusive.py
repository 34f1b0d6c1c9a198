"""A conversation that one thread at a time may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llava_runner.conversation import Conversation


class ExclusiveConversation:
    """A conversation, for one thread at a time, in the process that loaded its model, until it is closed."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._process = os.getpid()
        self._lock = threading.RLock()
        self.load = conversation.load
        self.is_closed = False

    @contextmanager
    def alone(self) -> Iterator[Conversation]:
        """Yield the conversation, and keep other threads from it during the ``with`` block.

        The same thread may do so again. Raises ``RuntimeError`` after ``close``, and in a forked child, where
        ExecuTorch's threads are missing.
        """
        if os.getpid() != self._process:  # before the lock, which another thread of the parent may have held
            raise RuntimeError(
                "a session does not work in a forked child of the process that loaded it; "
                'load it in the child, and start the child by the method "spawn"'
            )
        with self._lock:
            if self.is_closed:
                raise RuntimeError("the session is closed")
            yield self._conversation

    @property
    def position(self) -> int:
        """The number of positions that the conversation takes, without waiting."""
        return self._conversation.position

    def close(self) -> None:
        """Free the model, once no thread uses it. In a forked child nothing happens."""
        if os.getpid() == self._process:
            with self._lock:
                if not self.is_closed:
                    self._conversation.close()
                self.is_closed = True
