"""What commands show on a terminal: tables, sizes, progress."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from llava_export.stages import StageRecord, Stages
from llava_export.system import readable_size
from llava_runner.timings import peak_memory

if TYPE_CHECKING:
    from llava_export.checkpoint.images import Images
    from llava_export.checkpoint.prompt import Prompt


def new_console() -> Console:
    """Return the console that commands print to.

    It does not color numbers and paths by itself, and it takes no text for markup: names of files and texts of packages
    may look like it. What has a style is given one.
    """
    return Console(highlight=False, markup=False)


def silence_libraries() -> None:
    """Suppress warnings of torch, torchao and transformers about other machines than this one."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def plain_table(*headings: str, right: Collection[str] = ()) -> Table:
    """Return an empty table without lines. Columns whose heading is in ``right`` have numbers, which are not cut."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        is_number = heading in right
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def print_files(console: Console, files: Mapping[str, int], *, folder: Path) -> None:
    """Print the paths of files and their sizes, which are given in bytes."""
    console.print()
    for name, size in files.items():
        console.print(f"  {folder / name}", end="", soft_wrap=True)
        console.print(f"  {f'{size / 1e6:,.1f} MB' if size >= 1e5 else f'{size / 1e3:,.1f} kB'}", style="dim")


def print_notes(console: Console, notes: Iterable[str]) -> None:
    """Print what the user should know of a checkpoint."""
    for note in notes:
        console.print(f"\nnote: {note}", style="yellow", soft_wrap=True)


@contextmanager
def progress(console: Console, *, steps: int | None) -> Iterator[Callable[[str], None]]:
    """Show a bar while the ``with`` block runs. Yields a function to call with the name of each step that begins.

    ``steps`` is None where their number is not known. On a file or pipe nothing is shown.
    """
    columns = TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)
        yield lambda name: bar.update(task, description=name, advance=1)


@contextmanager
def counted(console: Console, *, total: int, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Show a bar with the number of things and the time left while the ``with`` block runs.

    Yields a function to call after each thing, with what to show beside the bar. ``done`` things were done before. On a
    file or pipe nothing is shown.
    """
    columns = (
        TextColumn("{task.completed} of {task.total}"),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda text: bar.update(task, description=text, advance=1)


class ProgressStages(Stages):
    """Stages with a progress bar on a terminal. On a file or pipe, each finished stage is a line instead.

    ``total`` is the number of stages to come.
    """

    def __init__(self, console: Console, *, total: int) -> None:
        super().__init__()
        self.total = total
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description:<22}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            _PeakMemory(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the bar while the ``with`` block runs."""
        with self._progress:
            yield

    def note(self, message: str) -> None:
        """Record a message, and print it above the bar."""
        super().note(message)
        self._console.print(f"note: {message}", style="yellow")

    def show_start(self, name: str) -> None:
        """Show the stage's name in the bar."""
        self._progress.update(self._task, description=name, completed=len(self.records))

    def show_step(self, fraction: float) -> None:
        """Move the bar by a fraction of a stage."""
        self._progress.advance(self._task, fraction)

    def show_end(self, record: StageRecord) -> None:
        """Move the bar to the end of the stage, or print the line."""
        self._progress.update(self._task, completed=len(self.records))
        if not self._console.is_terminal:
            peak = readable_size(record.peak_bytes)
            self._console.print(f"{record.name:<22} {record.seconds:8.1f} s   peak {peak:>9}")

    def table(self) -> Table:
        """Return a table of the stages with their time and memory."""
        table = plain_table("stage", "time", "peak memory", right=("time", "peak memory"))
        for record in self.records:
            table.add_row(record.name, f"{record.seconds:.1f} s", readable_size(record.peak_bytes))
        for record in self.parallel:
            table.add_row(record.name, f"{record.seconds:.1f} s", readable_size(record.peak_bytes), style="dim")
        table.add_row("total", f"{self.seconds:.1f} s", readable_size(self.peak_bytes), style="bold")
        return table


class _PeakMemory(ProgressColumn):
    """The most memory this process has had resident."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        return Text(f"peak {readable_size(peak_memory() or 0)}", style="magenta")


def print_prompt(console: Console, prompt: Prompt) -> None:
    """Print one turn of a conversation as the model reads it, and where its words come from."""
    console.print(f"\nprompt, from {prompt.source}:")
    console.print(f"  {prompt.example()!r}", style="dim", soft_wrap=True)


def print_images(console: Console, images: Images) -> None:
    """Print what is done with an image, and where that is said."""
    console.print(f"\nimages, from {images.source}:", soft_wrap=True)
    console.print(f"  {images.text()}", style="dim", soft_wrap=True)
