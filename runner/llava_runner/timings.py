"""Time and memory that an answer took, printed in the format of llama.cpp."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

NARROW = 80  # columns; in fewer, llama.cpp's lines are not readable any more


@dataclass
class Stage:
    """The time spent on one kind of work, in milliseconds, and how many items were done."""

    ms: float = 0.0
    count: int = 0

    @contextmanager
    def measure(self, count: int = 1) -> Iterator[Stage]:
        """Add the time of the ``with`` block, and ``count`` items. Nothing is added if the block raises."""
        start = time.perf_counter()
        yield self
        self.ms += (time.perf_counter() - start) * 1000
        self.count += count

    @property
    def per_second(self) -> float:
        """Return the items per second, 0 if no time was measured."""
        return 1000 * self.count / self.ms if self.ms else 0.0


@dataclass
class Timings:
    """The time of each stage of one answer, and of loading the package.

    ``image`` counts positions of the image, and its time includes preprocessing. ``prompt`` counts all positions of the
    prompt, those of the image too. ``sample`` and ``eval`` count tokens: an answer of n tokens takes n samples and
    n - 1 evals. Of ``drafted`` tokens that were guessed, ``accepted`` were right.
    """

    load: Stage
    image: Stage = field(default_factory=Stage)
    prompt: Stage = field(default_factory=Stage)
    sample: Stage = field(default_factory=Stage)
    eval: Stage = field(default_factory=Stage)
    drafted: int = 0
    accepted: int = 0

    @property
    def total_ms(self) -> float:
        """Return the sum of all stages. Time in which the caller kept the answer waiting is not part of it."""
        return self.load.ms + self.image.ms + self.prompt.ms + self.sample.ms + self.eval.ms

    def report(self, *, columns: int | None = None) -> str:
        """Return a line for each stage, the total, and the peak memory of the process where the system tells it.

        One more line follows if tokens were guessed.
        The lines are those of llama.cpp. On a terminal of fewer than 80 ``columns`` shorter ones have the same figures.
        """
        is_narrow = columns is not None and columns < NARROW
        lines = self._lines(_short_line if is_narrow else _long_line)
        if self.drafted:
            label = "draft " if is_narrow else f"llava_print_timings: {'draft':>16} ="
            count = f"{self.accepted:5d} accepted" if is_narrow else f"{self.accepted:7d}    accepted"
            lines.append(f"{label} {count} of {self.drafted}")
        return "\n".join(lines)

    def _lines(self, line: Callable[..., str]) -> list[str]:
        """Return the lines of the report."""
        lines = [
            line("load time", self.load.ms),
            line("image eval time", self.image.ms, self.image, "tokens"),
            line("sample time", self.sample.ms, self.sample, "runs"),
            line("prompt eval time", self.prompt.ms, self.prompt, "tokens"),
            line("eval time", self.eval.ms, self.eval, "runs"),
            line("total time", self.total_ms),
        ]
        if peak := peak_memory():
            lines.append(line("peak memory", peak / 2**20, unit="MiB"))
        return lines


def columns_of(stream: TextIO) -> int | None:
    """Return the width of the terminal that a stream writes to, in columns. None stands for no terminal.

    The environment variable ``COLUMNS`` comes first.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (AttributeError, ValueError, OSError):
        return None


def peak_memory(process: int | str = "self") -> int | None:
    """Return the most memory that was resident in a process so far, in bytes, or None on a system without ``/proc``.

    ``process`` is its id, or "self" for this one.

    This is Linux's VmHWM. It begins with this program, whereas ``getrusage``'s ``ru_maxrss`` begins with the program
    that started it: a small process started by a large one would report the large one's peak.
    """
    return _status("VmHWM", process)


def anonymous_memory() -> int | None:
    """Return the memory that is resident now and not backed by a file, in bytes, or None on a system without ``/proc``.

    This is Linux's RssAnon. The system cannot drop this memory and read it again from a file.
    """
    return _status("RssAnon")


def _status(name: str, process: int | str = "self") -> int | None:
    """Return a field of ``/proc/PROCESS/status`` in bytes. The file gives it in KiB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _long_line(label: str, value: float, stage: Stage | None = None, noun: str = "", *, unit: str = "ms") -> str:
    """Return a line as llama.cpp prints it."""
    line = f"llava_print_timings: {label:>16} = {value:10.2f} {unit}"
    if stage is None:
        return line
    per_item = stage.ms / stage.count if stage.count else 0.0
    each = f"({per_item:8.2f} ms per token, {stage.per_second:8.2f} tokens per second)"
    return f"{line} / {stage.count:5d} {noun:<6} {each}"


def _short_line(label: str, value: float, stage: Stage | None = None, noun: str = "", *, unit: str = "ms") -> str:
    """Return a line of at most 40 columns: the stage, its time, the number of tokens, and how many a second."""
    line = f"{label.split()[0]:<6} {value:9.2f} {unit}"
    return line if stage is None else f"{line} {stage.count:5d} {stage.per_second:9.2f}/s"
