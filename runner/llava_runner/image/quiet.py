"""Pillow warns of odd metadata. A runner's user can do nothing about it, and sees nothing of it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class _Quiet:
    """What the threads that are in ``without_warnings`` share."""

    lock = threading.Lock()
    threads = 0
    caught = warnings.catch_warnings()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings in the ``with`` block.

    Filters of warnings belong to the process. The first thread changes them and the last one restores them, so that
    threads that overlap do not restore each other's.
    """
    with _Quiet.lock:
        _Quiet.threads += 1
        if _Quiet.threads == 1:
            _Quiet.caught = warnings.catch_warnings()
            _Quiet.caught.__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.threads -= 1
            if _Quiet.threads == 0:
                _Quiet.caught.__exit__(None, None, None)
