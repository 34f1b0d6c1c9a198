"""The published ladders on one checkpoint: the same model exported and run with one thing changed at a time.

Published for LLaVA-1.5-7B on a OnePlus 12, by the ExecuTorch project: prefill 29.95 s with nothing but quantized
linears delegated and 17.82 s with two partitioners, decoding 8.75 and 8.93 tokens a second; memory 10.44 GiB, then 6.67
with one workspace for all delegates, 5.44 with a context of 768 instead of 2048, and about 5 with embeddings of 8 bits.
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
UNPACKED = "--packed-cache-path=off"  # a mapped file would hide what a device without one needs
SEPARATE = "--workspace-sharing=disabled"


@dataclass(frozen=True)
class Rung:
    """A step: flags of its export, flags of its runner, and what was published for it, by figure."""

    name: str
    export: tuple[str, ...]
    run: tuple[str, ...]
    published: dict[str, float]


@dataclass(frozen=True)
class Ladder:
    """``compared``: the figures to look at; the last rung is the exporter's default. Memory needs no warming up."""

    name: str
    compared: tuple[str, ...]
    rungs: tuple[Rung, ...]
    is_timed: bool = True


def speed_ladder(decode: str) -> Ladder:
    """``decode``: the figure of decoding, which is named after its depth."""
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
    """Export ``model`` for each rung into ``folder``, then run the rungs in turn. Raises a ``UserError``."""
    contenders: list[Contender] = []
    for rung in ladder.rungs:
        program = folder / f"{export_name(rung)}.pte"
        if not program.exists():
            on_step(f"exporting, {rung.name}")
            export(model, rung, program)
        contenders.append(cpp_runner(program, name=rung.name, flags=rung.run))
    return take_turns(contenders, work, runs=runs, warm_up=ladder.is_timed, on_round=on_step)


def export_name(rung: Rung) -> str:
    """One for all rungs of either ladder that are exported alike."""
    return "".join(flag.removeprefix("--") for flag in rung.export).replace("=", "-") or "default"


def export(model: str, rung: Rung, program: Path) -> None:
    """In a process of its own, which gives back all its memory."""
    command = [sys.executable, "-m", "llava_export.export", f"--model={model}", *rung.export, "--no-golden"]
    command += [f"--output-dir={program.parent}", f"--pte-name={program.name}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 2:
        raise BenchmarkError(done.stderr.strip().rpartition("error: ")[2])
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
