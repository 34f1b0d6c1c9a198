"""Times conversations that are kept: restoring one against reading it anew, and the size of its file."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from benchmarks.runs import add_runs
from llava_export.cli.terminal import new_console, plain_table
from llava_runner.arguments import ArgumentParser, run_command
from llava_runner.engine import Engine
from llava_runner.engine_library import find_library
from llava_runner.errors import UserError

QUESTION = "What is in the image?"
AGAIN = "And how many are there?"
DESCRIPTION = """Time conversations that are kept, in the C++ engine.

An image of noise and a question are read, and the conversation is saved to a
file. Then it is restored, and the same image is asked about again, as after a
restart. The figures are medians.
"""
EPILOG = """example:
  python -m benchmarks.bench_states package
"""


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.bench_states", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("package", type=Path, help="folder of a package")
    add_runs(parser)
    parser.set_defaults(runs=5)
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Measure and print. Raises a ``UserError`` where the engine is not built."""
    library = find_library()
    if library is None:
        raise UserError("the engine is not built: runner/build.sh native")
    engine = Engine(arguments.package, library=library)
    side = engine.describe().image_size
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    positions = size = 0
    with tempfile.TemporaryDirectory(dir=arguments.package) as folder:
        path = Path(folder) / "conversation"
        for _ in range(arguments.runs):
            pixels = random.integers(0, 256, (3, side, side), dtype=np.uint8)
            engine.reset()
            engine.add_tensor(pixels)
            time_of(times, "read image and question", lambda: begin(engine, QUESTION))
            positions = engine.describe().position
            time_of(times, "save to a file", lambda: engine.save(path))
            size = path.stat().st_size
            engine.reset()
            engine.add_tensor(255 - pixels)
            begin(engine, QUESTION)  # another conversation takes its place
            time_of(times, "restore", lambda: engine.restore(path))
            engine.reset()
            engine.add_tensor(pixels)
            time_of(times, "read another question about the image", lambda: begin(engine, AGAIN))
    table = plain_table("", "median", right=("median",))
    for name, each in times.items():
        table.add_row(name, f"{statistics.median(each):.1f} ms")
    table.add_row(f"file of {positions} positions", f"{size / 1e6:.1f} MB")
    new_console().print(table)


def begin(engine: Engine, question: str) -> None:
    """Read the added images and a question, up to the logits of the answer's first token."""
    engine.begin(question)
    engine.logits()


def time_of(times: dict[str, list[float]], name: str, work: Callable[[], object]) -> None:
    """Call ``work``, and add how many milliseconds it took."""
    start = time.perf_counter()
    work()
    times.setdefault(name, []).append((time.perf_counter() - start) * 1000)


if __name__ == "__main__":
    main()
