"""``llava evaluate``: how good a package or a recipe is, compared with the float model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from llava_export.cli.evaluate_text import add_text_flags, run_text
from llava_export.cli.flags import add_part_flags, add_recipe_flags
from llava_runner.arguments import ArgumentParser, path, run_command

EPILOG = """examples:
  llava evaluate package --text corpus.txt --against tiny-llava
  llava evaluate --model tiny-llava --text corpus.txt --group-size 32
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava evaluate") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava evaluate") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Measure a package, or a recipe without an export, against the float model.",
        epilog=EPILOG,
    )
    parser.add_argument("package", nargs="?", type=path, metavar="PACKAGE", help="a .pte, or the folder of a package")
    parser.add_argument("--against", metavar="CHECKPOINT", help="with a package: the checkpoint that it was made of")
    parser.add_argument("-m", "--model", metavar="CHECKPOINT", help="in place of a package: quantize it by the recipe")
    add_part_flags(parser)
    add_text_flags(parser)
    add_recipe_flags(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Measure as the command line says. Raises ``UserError`` for the user's mistakes."""
    run_text(arguments)
