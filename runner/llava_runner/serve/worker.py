"""One thread that computes one answer after the other, in the order in which they were asked for."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

Ending = Literal["gone", "time", "stopping"]


class Stopping(Exception):
    """The server takes no more jobs."""


def _early_end(why: Ending) -> Exception:
    return Stopping() if why == "stopping" else TimeoutError()


class Job:
    """A call that the worker makes, and what it tells the event loop meanwhile.

    ``ending`` says why the call should end early: the client is gone, its time is over, or the server stops.
    """

    def __init__(self, run: Callable[[Job], None]) -> None:
        """Take a call. Made in the event loop that reads ``events``."""
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.ending: Ending | None = None
        self._run = run
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Raise ``Stopping`` or ``TimeoutError`` if the call should end early."""
        if self.ending is not None:
            raise _early_end(self.ending)

    def tell(self, event: Any) -> None:
        """Give an event to the event loop, from the worker's thread."""
        with suppress(RuntimeError):  # the loop has ended, and nobody reads
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)

    def run(self) -> None:
        """Make the call. What it raises becomes the last event."""
        try:
            self._run(self)
        except Exception as error:
            self.tell(error)


class Worker:
    """The thread, and the jobs that wait for it."""

    def __init__(self, *, cancel: Callable[[], None]) -> None:
        """Start the thread. ``cancel`` ends early what the running job computes; it is called from other threads."""
        self._cancel = cancel
        self._jobs: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="llava-serve", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of jobs that wait."""
        return len(self._jobs)

    @property
    def is_running(self) -> bool:
        """Whether a job is computed."""
        return self._running is not None

    @property
    def is_stopping(self) -> bool:
        """Whether no more jobs are taken."""
        return self._stopping

    def submit(self, job: Job) -> None:
        """Put a job at the end of the queue. Raises ``Stopping``."""
        with self._changed:
            if self._stopping:
                raise Stopping
            self._jobs.append(job)
            self._changed.notify()

    def end(self, job: Job, why: Ending) -> None:
        """End a job early: one that waits is dropped, and one that runs is cancelled. A job that is done stays so."""
        with self._changed:
            if job.ending is not None:
                return
            job.ending = why
            if job is self._running:
                self._cancel()
            elif job in self._jobs:
                self._jobs.remove(job)
                job.tell(_early_end(why))

    def stop_taking(self) -> None:
        """Drop the jobs that wait, and take no more. The one that runs goes on."""
        with self._changed:
            self._stopping = True
            waiting = list(self._jobs)
            self._changed.notify()
        for job in waiting:
            self.end(job, "stopping")

    def end_running(self) -> None:
        """End early what is computed now."""
        running = self._running
        if running is not None:
            self.end(running, "stopping")

    def close(self) -> None:
        """End all jobs, and the thread."""
        self.stop_taking()
        self.end_running()
        self._thread.join()

    def _work(self) -> None:
        """Make the calls, until the worker is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._stopping)
                if not self._jobs:
                    return
                self._running = self._jobs.popleft()
            self._running.run()
            with self._changed:
                self._running = None
