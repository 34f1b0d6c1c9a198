"""Rounds of the same work by several runners in turn: each round is a process of its own, from load to exit.

Taking turns shares out what else the machine does. A first, short round that does not count packs weights for the
processor and brings files into the system's cache.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_runner.errors import UserError

ROOT = Path(__file__).parents[2]
LLAVA_BENCH = ROOT / "cmake-out" / "native" / "llava_bench"
DEFAULT_PROMPT_TOKENS = 600
DEFAULT_DECODE_TOKENS = 32
# What matrix kernels are chosen by, in the names of /proc/cpuinfo.
EXTENSIONS = re.compile(r"avx2|fma|f16c|avx_vnni|avx512f|avx512_(vnni|bf16|fp16)|amx_\w+|asimd\w*|i8mm|bf16|sve2?|sme")


class BenchmarkError(UserError):
    """Something to measure with that is missing, or does not run."""


@dataclass(frozen=True)
class Work:
    """What a round does: an image and a prompt of ``prompt_tokens`` positions, then ``decode_tokens`` at each depth."""

    image: Path
    prompt_tokens: int
    decode_tokens: int
    depths: tuple[int, ...]
    threads: int

    @classmethod
    def fitting(
        cls,
        *,
        max_seq_len: int,
        max_context_len: int,
        image: Path,
        prompt_tokens: int | None = None,
        decode_tokens: int | None = None,
        depths: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> Work:
        """What is None becomes the usual, or as much of it as fits the lengths; threads, one a processor."""
        decode_tokens = decode_tokens or DEFAULT_DECODE_TOKENS
        longest = max(1, min(DEFAULT_PROMPT_TOKENS, max_seq_len, max_context_len - decode_tokens))
        prompt_tokens = prompt_tokens or longest
        threads = threads or os.cpu_count() or 1
        return cls(image, prompt_tokens, decode_tokens, tuple(depths or (0, longest)), threads)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "image": self.image.name}

    def flags(self) -> list[str]:
        return [
            f"--image={self.image}",
            f"--prompt-tokens={self.prompt_tokens}",
            f"--decode-tokens={self.decode_tokens}",
            f"--depth={','.join(map(str, self.depths))}",
            f"--threads={self.threads}",
        ]


@dataclass(frozen=True)
class Contender:
    """A runner with its model: ``command`` without what ``Work`` adds to it."""

    name: str
    command: Sequence[str]

    def round(self, work: Work, *extra: str) -> dict[str, float]:
        """The figures of one round, by name. Raises ``BenchmarkError`` with what the runner says where it fails."""
        command = [*self.command, *work.flags(), *extra]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 2:
            raise BenchmarkError(f"{self.name}: {done.stderr.strip().rpartition('error: ')[2]}")
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        return figures(json.loads(done.stdout.splitlines()[-1]))

    def warm_up(self, work: Work) -> None:
        self.round(replace(work, decode_tokens=1, depths=(0,)))


def python_runner(program: Path) -> Contender:
    return Contender("python", (sys.executable, "-m", "llava_runner.bench", f"--model-path={program}"))


def cpp_runner(program: Path, *, name: str = "cpp", flags: Sequence[str] = ()) -> Contender:
    """Raises ``BenchmarkError`` where it has not been built."""
    if not LLAVA_BENCH.is_file():
        raise BenchmarkError(f"{LLAVA_BENCH} is missing: runner/build.sh native builds it")
    return Contender(name, (str(LLAVA_BENCH), f"--model-path={program}", *flags))


def llama_cpp(text: Path, mmproj: Path, *, context: int) -> Contender:
    module = "llava_export.benchmark.llama_cpp"
    paths = (f"--model-path={text}", f"--mmproj={mmproj}", f"--n-ctx={context}")
    return Contender("llama.cpp", (sys.executable, "-m", module, *paths))


UNITS = {
    "load": "s",
    "image": "s",
    "prompt": "s",
    "prefill": "tok/s",
    "first token": "s",
    "decode": "tok/s",
    "peak": "GiB",
}


def unit(figure: str) -> str:
    return next(unit for start, unit in UNITS.items() if figure.startswith(start))


def figures(measured: Mapping[str, Any]) -> dict[str, float]:
    """A round's JSON as seconds, tokens a second and GiB. The first token comes after image and prompt; not load."""
    found = {
        "load": measured["load_ms"] / 1e3,
        "image": measured["image_ms"] / 1e3,
        "prompt": measured["prompt_ms"] / 1e3,
        "prefill": measured["prompt_tokens"] / measured["prompt_ms"] * 1e3,
        "first token": (measured["image_ms"] + measured["prompt_ms"]) / 1e3,
    }
    for decoding in measured["decode"]:
        found[f"decode at {decoding['depth']}"] = decoding["tokens"] / decoding["ms"] * 1e3
    found["peak memory"] = measured["peak_bytes"] / 2**30
    found["peak, without files"] = measured["anonymous_bytes"] / 2**30
    return found


@dataclass(frozen=True)
class Figure:
    """A median over rounds, and the lowest and the highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Results:
    """The rounds of each contender, by its name, in the order they ran."""

    work: Work
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Of the figures."""
        return list(next(iter(self.rounds.values()))[0])

    def figure(self, contender: str, name: str) -> Figure:
        return Figure.of([values[name] for values in self.rounds[contender]])

    def ratio(self, contender: str, peer: str, name: str) -> Figure:
        """How many times better a contender is than its peer, round by round: faster, or smaller."""
        better = unit(name) == "tok/s"
        pairs = zip(self.rounds[contender], self.rounds[peer], strict=True)
        return Figure.of([mine[name] / other[name] if better else other[name] / mine[name] for mine, other in pairs])

    def depths(self, contender: str) -> dict[int, Figure]:
        starts = "decode at "
        return {
            int(name.removeprefix(starts)): self.figure(contender, name)
            for name in self.names()
            if name.startswith(starts)
        }

    def to_dict(self) -> dict[str, Any]:
        contenders = {
            contender: {name: {"unit": unit(name), **asdict(self.figure(contender, name))} for name in self.names()}
            for contender in self.rounds
        }
        return {"work": self.work.to_dict(), "figures": contenders, "rounds": self.rounds}


def take_turns(
    contenders: Sequence[Contender],
    work: Work,
    *,
    runs: int,
    warm_up: bool = True,
    on_round: Callable[[str], None] = lambda name: None,
) -> Results:
    """``runs`` rounds of each, in turn, after one of each to warm up; ``on_round`` is told who begins."""
    results = Results(work, {contender.name: [] for contender in contenders})
    for contender in contenders if warm_up else ():
        on_round(f"{contender.name}, warming up")
        contender.warm_up(work)
    for run in range(runs):
        for contender in contenders:
            on_round(f"{contender.name}, round {run + 1} of {runs}")
            results.rounds[contender.name].append(contender.round(work))
    return results


def machine() -> dict[str, str]:
    """This machine and what is installed on it, for whoever reads the numbers elsewhere."""
    from importlib.metadata import version

    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    processor = platform.processor() or platform.machine()
    extensions: list[str] = []
    if cpuinfo.exists():
        lines = dict(line.partition(":")[::2] for line in cpuinfo.read_text().splitlines())
        known = {name.strip(): value.strip() for name, value in lines.items()}
        processor = known.get("model name", processor)
        flags = known.get("flags", known.get("Features", "")).split()
        extensions = [flag for flag in flags if EXTENSIONS.fullmatch(flag)]
    memory = ""
    if meminfo.exists():
        memory = f"{int(meminfo.read_text().split()[1]) / 2**20:.0f} GiB"
    return {
        "processor": f"{processor}, {platform.machine()}, {os.cpu_count()} processors",
        "extensions": " ".join(extensions),
        "memory": memory,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "executorch": version("executorch"),
    }
