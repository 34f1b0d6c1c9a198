"""Rounds of the same work by several contenders in turn.

A contender is a runner with its model. A round is one process of it, from loading to the last token. Contenders take
turns, so that whatever else the machine does slows all of them. Each first runs a short round that does not count: it
packs weights for the processor and brings files into the system's cache.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_runner.bench import DEFAULT_PROMPT_TOKENS, default_prompt_tokens
from llava_runner.errors import UserError

ROOT = Path(__file__).parents[2]
LLAVA_BENCH = ROOT / "cmake-out" / "native" / "llava_bench"
DEFAULT_DECODE_TOKENS = 32
# Processor features by which matrix kernels are chosen, as /proc/cpuinfo names them.
EXTENSIONS = re.compile(r"avx2|fma|f16c|avx_vnni|avx512f|avx512_(vnni|bf16|fp16)|amx_\w+|asimd\w*|i8mm|bf16|sve2?|sme")


class BenchmarkError(UserError):
    """Something that measuring needs is missing or does not run."""


@dataclass(frozen=True)
class Work:
    """The work of a round.

    It reads an image and a prompt of ``prompt_tokens`` positions together. Then it decodes ``decode_tokens`` tokens at
    each depth, which is the number of positions in the cache before them.
    """

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
        num_image_tokens: int = 0,
        prompt_tokens: int | None = None,
        decode_tokens: int | None = None,
        depths: Sequence[int] | None = None,
        threads: int | None = None,
    ) -> Work:
        """Return the work for a program of these lengths.

        What is None becomes the default, or as much of it as fits the lengths. Threads become one for each processor.
        """
        decode_tokens = decode_tokens or DEFAULT_DECODE_TOKENS
        room = max(1, min(max_seq_len, max_context_len - decode_tokens))
        longest = min(DEFAULT_PROMPT_TOKENS, room)
        prompt_tokens = prompt_tokens or min(default_prompt_tokens(num_image_tokens), room)
        threads = threads or os.cpu_count() or 1
        return cls(image, prompt_tokens, decode_tokens, tuple(depths or (0, longest)), threads)

    def to_dict(self) -> dict[str, Any]:
        """Return the work as JSON has it, with the image's name alone."""
        return {**asdict(self), "image": self.image.name}

    def flags(self) -> list[str]:
        """Return the flags that tell a runner this work."""
        return [
            f"--image={self.image}",
            f"--prompt-tokens={self.prompt_tokens}",
            f"--decode-tokens={self.decode_tokens}",
            f"--depth={','.join(map(str, self.depths))}",
            f"--threads={self.threads}",
        ]


@dataclass(frozen=True)
class Contender:
    """A runner with its model. ``command`` lacks only the flags of the work."""

    name: str
    command: Sequence[str]

    def round(self, work: Work, *extra: str) -> dict[str, float]:
        """Run one round and return its figures by name. Raises as ``measure`` does."""
        return figures(self.measure(work, *extra))

    def measure(self, work: Work, *extra: str) -> dict[str, Any]:
        """Run one round and return the runner's JSON.

        Raises ``BenchmarkError`` with the runner's message for a user's mistakes, and ``RuntimeError`` for ours.
        """
        command = [*self.command, *work.flags(), *extra]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 2:
            raise BenchmarkError(f"{self.name}: {done.stderr.strip().rpartition('error: ')[2]}")
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return measured

    def warm_up(self, work: Work) -> None:
        """Run a short round that does not count."""
        self.round(replace(work, decode_tokens=1, depths=(0,)))


def python_runner(program: Path) -> Contender:
    """Return the Python runner with a program."""
    return Contender("python", (sys.executable, "-m", "llava_runner.bench", f"--model-path={program}"))


def cpp_runner(program: Path, *, name: str = "cpp", flags: Sequence[str] = ()) -> Contender:
    """Return the C++ runner with a program, and with more ``flags``. Raises ``BenchmarkError`` if it is not built."""
    if not LLAVA_BENCH.is_file():
        raise BenchmarkError(f"{LLAVA_BENCH} is missing: runner/build.sh native builds it")
    return Contender(name, (str(LLAVA_BENCH), f"--model-path={program}", *flags))


def llama_cpp(text: Path, mmproj: Path, *, context: int) -> Contender:
    """Return llama.cpp with the GGUF files of a language model and its vision tower."""
    module = "llava_export.benchmark.llama_cpp"
    paths = (f"--model-path={text}", f"--mmproj={mmproj}", f"--n-ctx={context}")
    return Contender("llama.cpp", (sys.executable, "-m", module, *paths))


# Units by the beginning of a figure's name.
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
    """Return the unit of a figure by its name."""
    return next(unit for start, unit in UNITS.items() if figure.startswith(start))


def decoding_speed(decoding: Mapping[str, Any]) -> float:
    """Return the tokens a second of a decoding in a runner's JSON."""
    return float(decoding["tokens"] / decoding["ms"] * 1e3)


def figures(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a round by name, in seconds, tokens a second and GiB.

    ``measured`` is the runner's JSON. The time to the first token is that of image and prompt, without loading.
    """
    found = {
        "load": measured["load_ms"] / 1e3,
        "image": measured["image_ms"] / 1e3,
        "prompt": measured["prompt_ms"] / 1e3,
        "prefill": measured["prompt_tokens"] / measured["prompt_ms"] * 1e3,
        "first token": (measured["image_ms"] + measured["prompt_ms"]) / 1e3,
    }
    for decoding in measured["decode"]:
        found[f"decode at {decoding['depth']}"] = decoding_speed(decoding)
    found["peak memory"] = measured["peak_bytes"] / 2**30
    found["peak, without files"] = measured["anonymous_bytes"] / 2**30
    return found


@dataclass(frozen=True)
class Figure:
    """The median of a value over rounds, with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Return the figure of some rounds' values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Results:
    """The rounds of each contender by its name, in the order in which they ran."""

    work: Work
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return the names of the figures."""
        return list(next(iter(self.rounds.values()))[0])

    def figure(self, contender: str, name: str) -> Figure:
        """Return a figure of a contender over its rounds."""
        return Figure.of([values[name] for values in self.rounds[contender]])

    def ratio(self, contender: str, peer: str, name: str) -> Figure:
        """Return how many times better a contender is than its peer, round by round. Better is faster or smaller."""
        better = unit(name) == "tok/s"
        pairs = zip(self.rounds[contender], self.rounds[peer], strict=True)
        return Figure.of([mine[name] / other[name] if better else other[name] / mine[name] for mine, other in pairs])

    def depths(self, contender: str) -> dict[int, Figure]:
        """Return a contender's decoding speeds by depth, in tokens a second."""
        starts = "decode at "
        return {
            int(name.removeprefix(starts)): self.figure(contender, name)
            for name in self.names()
            if name.startswith(starts)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return work, figures and rounds as JSON has them."""
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
    """Run ``runs`` rounds of each contender in turn, after one of each to warm up, and return them.

    ``on_round`` is called with the name of each round before it begins.
    """
    results = Results(work, {contender.name: [] for contender in contenders})
    for _, contender in turns(contenders, work, runs=runs, warm_up=warm_up, on_round=on_round):
        results.rounds[contender.name].append(contender.round(work))
    return results


def turns(
    contenders: Sequence[Contender],
    work: Work,
    *,
    runs: int,
    warm_up: bool = True,
    on_round: Callable[[str], None] = lambda name: None,
) -> Iterator[tuple[int, Contender]]:
    """Run a round of each contender to warm up. Then yield whose turn it is, with the number of the run from 0 on.

    ``on_round`` is called with the name of each round before it begins.
    """
    for contender in contenders if warm_up else ():
        on_round(f"{contender.name}, warming up")
        contender.warm_up(work)
    for run in range(runs):
        for contender in contenders:
            on_round(f"{contender.name}, round {run + 1} of {runs}")
            yield run, contender


def machine() -> dict[str, str]:
    """Return this machine and its software in words, for people who read the numbers elsewhere."""
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
