"""``python -m training.calibration``: renders the scenes that ship with the project to calibrate quantization with.

They are scenes of the training set, so that those that accuracy is measured on stay unseen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NoReturn

from llava_export.builtin import CALIBRATION
from llava_runner.arguments import ArgumentParser, run_command
from training.questions import TRAINING_SEEDS, question_for

NUM_SCENES = 24  # each question type three times
LONGER_SIDE = 160  # pixels; with JPEG's quality, a few kilobytes an image
QUALITY = 90


def write_scenes(folder: Path) -> None:
    """Write images, and a ``samples.jsonl`` with a question about each and its answer."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for seed in TRAINING_SEEDS[:NUM_SCENES]:
        image, question, answer = question_for(seed)
        image.thumbnail((LONGER_SIDE, LONGER_SIDE))
        name = f"scene{seed:02}.jpg"
        image.save(folder / name, quality=QUALITY)
        lines.append(json.dumps({"image": name, "question": question, "answer": answer}) + "\n")
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(
        prog="python -m training.calibration",
        description="Render the scenes that ship with the project to calibrate quantization with.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=CALIBRATION[0],
        metavar="DIR",
        help="folder to write to (default: the built-in one)",
    )
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Render the scenes as the command line says."""
    write_scenes(arguments.output)


if __name__ == "__main__":
    main()
