"""Measures the figures of docs/BENCHMARKS.md, and writes the page, its plots and the table in README.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.differences import differences, measured_here
from benchmarks.measuring import ALL_MODELS, PARTS, ROOT, WorkFolder, measure_part, models_of, prepare
from benchmarks.page_text import render
from benchmarks.readme import update_readme
from llava_export.benchmark.rounds import machine
from llava_export.cli.terminal import new_console
from llava_runner.arguments import ArgumentParser, run_command
from llava_runner.errors import UserError

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "BENCHMARKS.md"
FOLDER = ROOT / "docs" / "benchmarks"  # plots, and results.json
RESULTS = FOLDER / "results.json"
DESCRIPTION = """Measure the figures of docs/BENCHMARKS.md, and write the page, its plots and the
table in README.md. This takes two hours, 24 GB of memory and 100 GB of disk.

Checkpoints of full size with random weights are made first. They and what is
exported of them stay in the work folder. Every part is a command that anybody
can run, and the page names it next to its figures.

Whatever is measured again on the same kind of processor is compared with the
time before, and the page says how far the two are apart.
"""
EPILOG = """examples:
  python -m benchmarks.page --work-dir /tmp/benchmarks
  python -m benchmarks.page --work-dir /tmp/benchmarks --only speed profile
  python -m benchmarks.page --work-dir /tmp/benchmarks --models mobilevlm-1.7b
"""


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.page", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--work-dir", type=Path, required=True, metavar="DIR", help="folder of checkpoints, packages and raw figures"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=tuple(PARTS),
        metavar="PART",
        help=f"measure these parts alone and keep the figures of the others: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=ALL_MODELS,
        default=ALL_MODELS,
        metavar="MODEL",
        help=f"measure these models alone and keep the figures of the others: {', '.join(ALL_MODELS)}",
    )
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Measure and write as the command line says. Raises a ``UserError`` if a command fails or a part is missing."""
    console = new_console()
    work = WorkFolder(arguments.work_dir.resolve(), plots=FOLDER, console=console)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results: dict[str, Any] = {"again": {}, **before}
    about = {model for part in arguments.only for model in models_of(part)}
    prepare(work, [model for model in arguments.models if model in about])
    again: dict[str, dict[str, Any]] = {}
    for part in [part for part in PARTS if part in arguments.only]:
        found = measure_part(part, work, arguments.models)
        results[part] = results.get(part, {}) | found
        again |= differences(measured_here(before, machine()), {part: found})
        results["again"] = results["again"] | again
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for name, each in again.items():
        console.print(f"{each['ratio']:6.2f} times the first time: {name}")
    wanted = [(part, model) for part in PARTS for model in models_of(part)]
    if missing := [f"{part} of {model}" for part, model in wanted if model not in results.get(part, {})]:
        raise UserError(f"the page also needs {', '.join(missing)}: measure them, too")
    PAGE.write_text(render(results))
    update_readme(README, results)


if __name__ == "__main__":
    main()
