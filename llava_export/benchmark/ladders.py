"""The published ladders, measured on one checkpoint: a model exported and run with one thing changed at a time.

A ladder is a series of such changes, and a rung is one state of the model in it. The ExecuTorch project published two
ladders of LLaVA-1.5-7B on a OnePlus 12.

- Speed: with quantized linears alone in delegates, prefill takes 29.95 s and decoding makes 8.75 tokens a second. With
  two partitioners it is 17.82 s and 8.93 tokens a second.
- Memory: 10.44 GiB at first, 6.67 with one workspace for all delegates, 5.44 with a context of 768 instead of 2048, and
  about 5 with an embedding of 8 bits.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava_export.benchmark.rounds import BenchmarkError, Contender, Results, Work, cpp_runner, take_turns

LONG_CONTEXT, SHORT_CONTEXT = 2048, 768
LONG = (f"--max-seq-len={LONG_CONTEXT}", f"--max-context-len={LONG_CONTEXT}")
FLOAT_EMBEDDING = ("--embedding-bits=32",)
UNPACKED = "--packed-cache-path=off"  # weights in a mapped file would hide how much memory a device without one needs
SEPARATE = "--workspace-sharing=disabled"


@dataclass(frozen=True)
class Rung:
    """One state of the model: flags of its export, flags of its runner, and the published values by figure."""

    name: str
    export: tuple[str, ...]
    run: tuple[str, ...]
    published: dict[str, float]


@dataclass(frozen=True)
class Ladder:
    """The rungs from the first to the last, which is the exporter's default.

    ``compared`` names the figures to look at. ``is_timed`` is False where all of them are memory: that needs no round
    to warm up.
    """

    name: str
    compared: tuple[str, ...]
    rungs: tuple[Rung, ...]
    is_timed: bool = True


def speed_ladder(decode: str) -> Ladder:
    """Return the ladder of speed. ``decode`` is the name of decoding's figure, which contains the depth."""
    prompt = "prompt"
    return Ladder(
        "speed",
        (prompt, decode),
        (
            Rung("quantized linears alone", ("--partitioners=1",), (), {prompt: 29.95, decode: 8.75}),
            Rung("two partitioners", (), (), {prompt: 17.82, decode: 8.93}),
        ),
    )


MEMORY_LADDER = Ladder(
    "memory",
    ("peak memory", "peak, without files"),
    (
        Rung(
            f"context {LONG_CONTEXT}, float embedding, separate workspaces",
            (*LONG, *FLOAT_EMBEDDING),
            (UNPACKED, SEPARATE),
            {"peak memory": 10.44},
        ),
        Rung("shared workspace", (*LONG, *FLOAT_EMBEDDING), (UNPACKED,), {"peak memory": 6.67}),
        Rung(f"context {SHORT_CONTEXT}", FLOAT_EMBEDDING, (UNPACKED,), {"peak memory": 5.44}),
        Rung("8-bit embedding", (), (UNPACKED,), {"peak memory": 5.0}),
    ),
    is_timed=False,
)


def run_ladder(
    ladder: Ladder,
    model: str,
    work: Work,
    *,
    folder: Path,
    runs: int,
    on_step: Callable[[str], None] = lambda name: None,
) -> Results:
    """Export ``model`` for each rung into ``folder``, run the rungs in turn, and return their rounds by name.

    ``on_step`` is called with the name of each step before it begins. Raises a ``UserError`` for a user's mistakes.
    """
    contenders: list[Contender] = []
    for rung in ladder.rungs:
        program = folder / f"{export_name(rung)}.pte"
        if not program.exists():
            on_step(f"exporting, {rung.name}")
            export(model, rung, program)
        contenders.append(cpp_runner(program, name=rung.name, flags=rung.run))
    return take_turns(contenders, work, runs=runs, warm_up=ladder.is_timed, on_round=on_step)


def export_name(rung: Rung) -> str:
    """Return a name for the exported program. Rungs of both ladders with the same flags share it."""
    return "".join(flag.removeprefix("--") for flag in rung.export).replace("=", "-") or "default"


def export(model: str, rung: Rung, program: Path) -> None:
    """Export ``model`` with a rung's flags to ``program``, in a process of its own that returns all its memory.

    Raises ``BenchmarkError`` for a user's mistakes, and ``RuntimeError`` for ours.
    """
    command = [sys.executable, "-m", "llava_export.export", f"--model={model}", *rung.export, "--no-golden"]
    command += [f"--output-dir={program.parent}", f"--pte-name={program.name}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 2:
        raise BenchmarkError(done.stderr.strip().rpartition("error: ")[2])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
