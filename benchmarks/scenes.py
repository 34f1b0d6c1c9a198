"""Writes rendered scenes that no training saw as a data set: images, and a question about each with its answer.

Scene i is the i-th held-out seed of ``training/questions.py``. Its kind is the type of its question. Hard scenes have
more and smaller objects, and more noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NoReturn

from llava_export.cli.flags import output_folder
from llava_runner.arguments import ArgumentParser, positive_int, run_command, whole_number
from training import questions
from training.scenes import HARD, PLAIN, Style

ITEMS = "items.jsonl"
EPILOG = """example:
  python -m benchmarks.scenes scenes --count 200
  llava evaluate demo/llava.pte --dataset scenes --against tiny-llava
  python -m benchmarks.scenes hard-scenes --count 1000 --hard
"""


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(
        prog="python -m benchmarks.scenes",
        description="Write scenes that no training saw, for llava evaluate. Only the built-in models know them.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("folder", type=output_folder, metavar="DIR", help="where to write the images and items.jsonl")
    add("--count", type=positive_int, default=200, metavar="N", help="how many (default: %(default)s)")
    add("--first", type=whole_number, default=0, metavar="N", help="the first one (default: %(default)s)")
    add("--hard", action="store_true", help="scenes of which the built-in models have 80 to 90 %% right, in float")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Write the scenes."""
    style = HARD if arguments.hard else PLAIN
    write_scenes(arguments.folder, count=arguments.count, first=arguments.first, style=style)


def write_scenes(folder: Path, *, count: int, first: int = 0, style: Style = PLAIN) -> None:
    """Write ``count`` held-out scenes from the one of number ``first`` on."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(first, first + count):
        seed = questions.HELD_OUT_SEED + number
        image, question, answer = questions.question_for(seed, style)
        name = f"images/{number:05}.png"
        image.save(folder / name)
        kind = questions.question_type_for(seed, style)
        lines.append({"id": str(number), "image": name, "question": question, "answer": answer, "kind": kind})
    (folder / ITEMS).write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
