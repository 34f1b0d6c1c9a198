"""The stages of an export as they pass: a bar while one runs, and its time and memory once it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from llava_runner.timings import peak_memory


@dataclass(frozen=True)
class StageRecord:
    """``seconds`` it took; ``peak_bytes``, the most the process had resident by its end."""

    name: str
    seconds: float
    peak_bytes: int


class _PeakMemory(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"peak {readable_size(peak_memory() or 0)}", style="magenta")


@dataclass
class Stages:
    """Shows and remembers the stages. ``total`` is how many are to come, for the bar."""

    console: Console
    total: int
    records: list[StageRecord] = field(default_factory=list)
    beside: list[StageRecord] = field(default_factory=list)  # what other processes did meanwhile

    @contextmanager
    def running(self) -> Iterator[Stages]:
        """The bar is on the screen while this is open; on a file or pipe each finished stage is a line instead."""
        self._progress = Progress(
            TextColumn("[bold]{task.description:<22}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _PeakMemory(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=self.total)
        with self._progress:
            yield self

    @contextmanager
    def stage(self, name: str, *, steps: int = 1) -> Iterator[Callable[[], None]]:
        """Times the block; it calls what is yielded after each of its ``steps``, at most that many times."""
        start, done = time.perf_counter(), len(self.records)
        self._progress.update(self._task, description=name, completed=done)
        yield lambda: self._progress.advance(self._task, 1 / (steps + 1))
        seconds, peak = time.perf_counter() - start, peak_memory() or 0
        self.records.append(StageRecord(name, seconds, peak))
        self._progress.update(self._task, completed=done + 1)
        if not self.console.is_terminal:
            self.console.print(f"{name:<22} {seconds:8.1f} s   peak {readable_size(peak):>9}", highlight=False)

    def add_beside(self, name: str, *, seconds: float, peak_bytes: int) -> None:
        """What a process of its own took: its memory adds to ours, its time does not."""
        self.beside.append(StageRecord(name, seconds, peak_bytes))

    def note(self, message: str) -> None:
        """Say what the user should know of, above the bar."""
        self.console.print(f"note: {message}", style="yellow", highlight=False, markup=False)

    def table(self) -> Table:
        table = Table("stage", box=None, pad_edge=False, header_style="dim")
        table.add_column("time", justify="right")
        table.add_column("peak memory", justify="right")
        for record in self.records:
            table.add_row(record.name, f"{record.seconds:.1f} s", readable_size(record.peak_bytes))
        for record in self.beside:
            table.add_row(record.name, f"{record.seconds:.1f} s", readable_size(record.peak_bytes), style="dim")
        total = sum(record.seconds for record in self.records)
        memory = (peak_memory() or 0) + sum(record.peak_bytes for record in self.beside)
        table.add_row("total", f"{total:.1f} s", readable_size(memory), style="bold")
        return table


def readable_size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
