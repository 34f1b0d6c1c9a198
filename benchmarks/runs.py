"""How often a benchmark runs each of the things that it compares."""

from __future__ import annotations

import argparse

from llava_runner.arguments import positive_int

WARM_UP = 2  # runs of each that are not counted


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add ``--runs``, the number of runs that count."""
    parser.add_argument(
        "--runs",
        type=positive_int,
        default=15,
        metavar="N",
        help=f"runs of each, in turn, after {WARM_UP} to warm up (default: %(default)s)",
    )
