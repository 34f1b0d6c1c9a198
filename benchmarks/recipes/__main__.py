"""The command ``python -m benchmarks.recipes``."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import NoReturn

from benchmarks.recipes.entries import ENTRIES, RECIPES
from benchmarks.recipes.results import RESULTS, SCENES
from llava_export.cli.flags import DEFAULT_SAMPLES, UsageError
from llava_export.system import DEVICES, check_device
from llava_runner.arguments import ArgumentParser, path, positive_int, run_command

STEPS = ("measure", "scenes", "speed", "page")
DESCRIPTION = """Measure recipes on a real language model, and write docs/RECIPES.md.

  measure   perplexity, KL and the same top-1 of each recipe on a text, in torch
  scenes    what some of them lose on scenes, with the built-in models, in torch
  speed     export the recipes whose programs differ, and time their decoding
  page      write the page and its plots

Every figure is written as soon as it is there. The step measure does not
measure again what is there. The checkpoint and the texts are those of python -m benchmarks.real_llm.
"""
EPILOG = """example:
  python -m benchmarks.real_llm --work-dir smollm2
  python -m benchmarks.recipes measure --work-dir smollm2 --device cuda
  python -m benchmarks.recipes scenes
  python -m benchmarks.recipes speed --work-dir smollm2
  python -m benchmarks.recipes page
"""


def main() -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(), run, None)


def build_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(prog="python -m benchmarks.recipes", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("step", choices=STEPS, help="what to do")
    parser.add_argument("--work-dir", type=path, metavar="DIR", help="folder that benchmarks.real_llm made")
    parser.add_argument(
        "--results", type=path, default=RESULTS, metavar="FILE", help="JSON of the figures (default: the project's)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=ENTRIES, metavar="NAME", help=f"these recipes alone: {', '.join(ENTRIES)}"
    )
    measuring = parser.add_argument_group("measure")
    measuring.add_argument("--text", default="page.npy", metavar="NAME", help="text in DIR (default: %(default)s)")
    measuring.add_argument("--windows", type=positive_int, default=8, metavar="N", help="parts of it (default: 8)")
    measuring.add_argument(
        "--window-len", type=positive_int, default=512, metavar="N", help="tokens of a part (default: %(default)s)"
    )
    measuring.add_argument(
        "--calibration", default="calibration.npy", metavar="NAME", help="text in DIR to calibrate with"
    )
    measuring.add_argument(
        "--calibration-samples",
        type=positive_int,
        default=DEFAULT_SAMPLES,
        metavar="N",
        help="parts of it (default: %(default)s)",
    )
    measuring.add_argument("--device", choices=DEVICES, default=DEVICES[0], help="(default: %(default)s)")
    measuring.add_argument("--again", action="store_true", help="measure what is there, too")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--rounds", type=positive_int, default=5, metavar="N", help="of each (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says. Raises a ``UserError`` for the user's mistakes."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    {"measure": measure, "scenes": scenes, "speed": speed, "page": write_page}[arguments.step](arguments)


def measure(arguments: argparse.Namespace) -> None:
    """Measure recipes in torch. Raises a ``UserError`` for the user's mistakes."""
    check_device(arguments.device)
    from benchmarks.recipes.measure import Data, Measurer, measure_all
    from benchmarks.recipes.results import RecipeResults
    from llava_export.checkpoint.checkpoint import open_checkpoint

    folder = work_dir(arguments)
    data = Data(
        text=folder / arguments.text,
        windows=arguments.windows,
        window_len=arguments.window_len,
        calibration=folder / arguments.calibration,
        calibration_samples=arguments.calibration_samples,
    )
    checkpoint = open_checkpoint(str(folder / "checkpoint"))
    measurer = Measurer(checkpoint, data, scratch=folder / "recipes", device=arguments.device, say=say)
    chosen = [ENTRIES[name] for name in arguments.only or ENTRIES]
    measure_all(chosen, measurer, RecipeResults(arguments.results), again=arguments.again, say=say)


def scenes(arguments: argparse.Namespace) -> None:
    """Measure recipes on scenes. Raises ``UsageError`` for a recipe that is not measured there."""
    from benchmarks.recipes.on_scenes import NAMES, measure_scenes

    names = arguments.only or NAMES
    if unknown := [name for name in names if name not in NAMES]:
        raise UsageError(f"{unknown[0]} is not measured on scenes; {', '.join(NAMES)} are")
    measure_scenes(names, results=SCENES, say=say)


def speed(arguments: argparse.Namespace) -> None:
    """Export what is missing, and time it. Raises a ``UserError`` for the user's mistakes."""
    from benchmarks.recipes.results import RecipeResults
    from benchmarks.recipes.speed import export_all, time_all

    results = RecipeResults(arguments.results)
    programs = export_all([entry for entry in RECIPES if entry.timed], work_dir(arguments))
    results.found["speed"] = time_all(programs, rounds=arguments.rounds, say=say)
    results.write()


def write_page(arguments: argparse.Namespace) -> None:
    """Write the page, its plots, and the advice in the guide. Raises a ``UserError`` if figures are missing."""
    from benchmarks.recipes.page import pages
    from benchmarks.recipes.plots import draw_all
    from benchmarks.recipes.results import FOLDER, RecipeResults

    if arguments.results != RESULTS:
        raise UsageError(f"the page is of the project's own figures: {RESULTS}")
    for page, text in pages(arguments.results).items():
        page.write_text(text, encoding="utf-8")
    draw_all(RecipeResults(arguments.results).found, FOLDER)


def work_dir(arguments: argparse.Namespace) -> Path:
    """Return the work folder. Raises ``UsageError`` if it was not named, or benchmarks.real_llm did not make it."""
    folder: Path | None = arguments.work_dir
    if folder is None:
        raise UsageError(f"--work-dir is missing: {arguments.step} needs the folder that benchmarks.real_llm made")
    if not (folder / "checkpoint").is_dir():
        raise UsageError(f"{folder} has no checkpoint: python -m benchmarks.real_llm --work-dir {folder} makes one")
    return folder.resolve()


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
