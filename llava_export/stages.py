"""The stages of an export: how long each took, and the memory the process had used by its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llava_runner.timings import peak_memory


@dataclass(frozen=True)
class StageRecord:
    """One finished stage: its duration in ``seconds``, and the most memory the process has had resident so far."""

    name: str
    seconds: float
    peak_bytes: int


class Stages:
    """Records the stages of an export. It shows nothing; ``cli.terminal.ProgressStages`` does.

    ``records`` are the stages of this process in order, ``parallel`` what other processes did at the same time, and
    ``notes`` what the user should know.
    """

    def __init__(self) -> None:
        self.records: list[StageRecord] = []
        self.parallel: list[StageRecord] = []
        self._together = 0  # the most bytes that this process and others can have had at one time
        self.notes: list[str] = []

    @contextmanager
    def stage(self, name: str, *, steps: int = 1) -> Iterator[Callable[[], None]]:
        """Time a ``with`` block. Yields a function to call after each of its ``steps``, at most that many times."""
        start = time.perf_counter()
        self.show_start(name)
        yield lambda: self.show_step(1 / (steps + 1))
        record = StageRecord(name, time.perf_counter() - start, peak_memory() or 0)
        self.records.append(record)
        self.show_end(record)

    def add_parallel(self, name: str, *, seconds: float, peak_bytes: int, beside_bytes: int) -> None:
        """Record what another process did at the same time. Its time does not count in the total.

        ``peak_bytes`` is the most memory it had resident, and ``beside_bytes`` the most that this process had until the
        other one was done.
        """
        self.parallel.append(StageRecord(name, seconds, peak_bytes))
        self._together = max(self._together, peak_bytes + beside_bytes)

    def note(self, message: str) -> None:
        """Record a message that the user should see."""
        self.notes.append(message)

    @property
    def seconds(self) -> float:
        """The duration of all stages."""
        return sum(record.seconds for record in self.records)

    @property
    def peak_bytes(self) -> int:
        """The most memory that all processes can have had resident at one time."""
        return max(peak_memory() or 0, self._together)

    def show_start(self, name: str) -> None:
        """Show that a stage begins."""

    def show_step(self, fraction: float) -> None:
        """Show that another ``fraction`` of the stage is done."""

    def show_end(self, record: StageRecord) -> None:
        """Show that a stage is done."""
