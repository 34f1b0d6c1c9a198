"""Where the time of an answer went, printed in the shape llama.cpp's users know."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """Time spent on one kind of work and how much was done of it."""

    ms: float = 0.0
    count: int = 0

    @contextmanager
    def measure(self, count: int = 1) -> Iterator[Stage]:
        """Add the time of a ``with`` block, in which ``count`` items were done."""
        start = time.perf_counter()
        yield self
        self.ms += (time.perf_counter() - start) * 1000
        self.count += count

    @property
    def per_second(self) -> float:
        return 1000 * self.count / self.ms if self.ms else 0.0


@dataclass
class Timings:
    """``load`` of the package, then the stages of one answer.

    ``image`` counts the positions an image takes, preprocessing included; ``prompt`` all positions of the prompt,
    the image's among them; ``sample`` and ``eval`` count tokens. An answer of n tokens is n samples and n - 1 evals.
    """

    load: Stage
    image: Stage = field(default_factory=Stage)
    prompt: Stage = field(default_factory=Stage)
    sample: Stage = field(default_factory=Stage)
    eval: Stage = field(default_factory=Stage)

    @property
    def total_ms(self) -> float:
        """The stages together: what the machine worked, not what it waited for the reader of the answer."""
        return self.load.ms + self.image.ms + self.prompt.ms + self.sample.ms + self.eval.ms

    def report(self) -> str:
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
    """The most memory this process has had resident, in bytes; None where the system has no ``/proc``."""
    return _status("VmHWM")


def anonymous_memory() -> int | None:
    """What of it now is no file's content, which the system could drop and read again; None as above."""
    return _status("RssAnon")


def _status(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _line(label: str, value: float, *, unit: str = "ms") -> str:
    return f"llava_print_timings: {label:>16} = {value:10.2f} {unit}"


def _rate(stage: Stage, noun: str) -> str:
    per_item = stage.ms / stage.count if stage.count else 0.0
    return f" / {stage.count:5d} {noun:<6} ({per_item:8.2f} ms per token, {stage.per_second:8.2f} tokens per second)"
