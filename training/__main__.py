"""``python -m training``: trains the built-in tiny models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from llava_runner.arguments import ArgumentParser, positive_int, run_command
from training import MODELS

DESCRIPTION = """Train one of the built-in tiny models on the CPU.

tiny-llava is trained from scratch, in two stages: first the vision tower, then
the whole model. The MobileVLMs start from its tower and its language model,
and have the second stage alone.

The result is a checkpoint folder as the family publishes them. It answers
questions about images of colored shapes. training.json, next to the weights,
has the command, the versions and the accuracy.
"""
EPILOG = """examples:
  python -m training tiny-llava                 71 minutes on two cores
  python -m training tiny-mobilevlm             27 minutes
  python -m training tiny-mobilevlm-v2 --output /tmp/tiny-mobilevlm-v2
"""


def build_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(prog="python -m training", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    add("--output", type=Path, metavar="DIR", help="folder of the checkpoint (default: the built-in one)")
    add("--seed", type=int, default=0, metavar="N", help="seed of weights and order (default: %(default)s)")
    add(
        "--num-scenes",
        type=positive_int,
        default=50_000,
        metavar="N",
        help="images to train on, 38 KB of disk each (default: %(default)s)",
    )
    add(
        "--vision-steps",
        type=positive_int,
        default=2600,
        metavar="N",
        help="steps of the vision tower's stage, 64 images each (default: %(default)s)",
    )
    add(
        "--answer-steps",
        type=positive_int,
        metavar="N",
        help="steps of the answers' stage, 16 images each (default: 7000 for tiny-llava, 3000 for the others)",
    )
    add("--threads", type=positive_int, default=2, metavar="N", help="threads to compute with (default: %(default)s)")
    return parser


def main() -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(), run, None)


def run(arguments: argparse.Namespace) -> None:
    """Train a model as the command line says."""
    from training.train import train  # torch and transformers take seconds to import

    train(arguments)


if __name__ == "__main__":
    main()
