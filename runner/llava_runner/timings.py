"""Time and memory that an answer took, printed in the format of llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


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
    n - 1 evals.
    """

    load: Stage
    image: Stage = field(default_factory=Stage)
    prompt: Stage = field(default_factory=Stage)
    sample: Stage = field(default_factory=Stage)
    eval: Stage = field(default_factory=Stage)

    @property
    def total_ms(self) -> float:
        """Return the sum of all stages. Time in which the caller kept the answer waiting is not part of it."""
        return self.load.ms + self.image.ms + self.prompt.ms + self.sample.ms + self.eval.ms

    def report(self) -> str:
        """Return a line for each stage, the total, and the peak memory of the process where the system tells it."""
        lines = [
            _line("load time", self.load.ms),
            _line("image eval time", self.image.ms) + _rate(self.image, "tokens"),
            _line("sample time", self.sample.ms) + _rate(self.sample, "runs"),
            _line("prompt eval time", self.prompt.ms) + _rate(self.prompt, "tokens"),
            _line("eval time", self.eval.ms) + _rate(self.eval, "runs"),
            _line("total time", self.total_ms),
        ]
        if peak := peak_memory():
            lines.append(_line("peak memory", peak / 2**20, unit="MiB"))
        return "\n".join(lines)


def peak_memory() -> int | None:
    """Return the most memory that was resident in this process, in bytes, or None on a system without ``/proc``.

    This is Linux's VmHWM. It begins with this program, whereas ``getrusage``'s ``ru_maxrss`` begins with the program
    that started it: a small process started by a large one would report the large one's peak.
    """
    return _status("VmHWM")


def anonymous_memory() -> int | None:
    """Return the memory that is resident now and not backed by a file, in bytes, or None on a system without ``/proc``.

    This is Linux's RssAnon. The system cannot drop this memory and read it again from a file.
    """
    return _status("RssAnon")


def _status(name: str) -> int | None:
    """Return a field of ``/proc/self/status`` in bytes. The file gives it in KiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _line(label: str, value: float, *, unit: str = "ms") -> str:
    """Return the beginning of a line of the report."""
    return f"llava_print_timings: {label:>16} = {value:10.2f} {unit}"


def _rate(stage: Stage, noun: str) -> str:
    """Return the end of a line: the count of items, and the time for each."""
    per_item = stage.ms / stage.count if stage.count else 0.0
    return f" / {stage.count:5d} {noun:<6} ({per_item:8.2f} ms per token, {stage.per_second:8.2f} tokens per second)"
