"""A model that one thread at a time may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llava_runner.model import ModelWithCard


class ExclusiveModel:
    """A model, for one thread at a time, in the process that loaded it, until it is closed."""

    def __init__(self, model: ModelWithCard) -> None:
        self._model: ModelWithCard | None = model
        self._process = os.getpid()
        self._lock = threading.RLock()

    @contextmanager
    def alone(self) -> Iterator[ModelWithCard]:
        """Yield the model, and keep other threads from it during the ``with`` block. The same thread may do so again.

        Raises ``RuntimeError`` after ``close``, and in a forked child, where ExecuTorch's threads are missing.
        """
        if os.getpid() != self._process:  # before the lock, which another thread of the parent may have held
            raise RuntimeError(
                "a session does not work in a forked child of the process that loaded it; "
                'load it in the child, and start the child by the method "spawn"'
            )
        with self._lock:
            if self._model is None:
                raise RuntimeError("the session is closed")
            yield self._model

    def close(self) -> None:
        """Let go of the model, once no thread uses it. In a forked child nothing happens."""
        if os.getpid() == self._process:
            with self._lock:
                self._model = None

    @property
    def is_closed(self) -> bool:
        """Return whether ``close`` was called."""
        return self._model is None
