"""``llava evaluate``: a package on a data set, or a package or recipe on a text."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from llava_export.cli.evaluate_dataset import add_dataset_flags, run_dataset
from llava_export.cli.evaluate_text import add_text_flags, run_text
from llava_export.cli.flags import UsageError, add_part_flags, add_recipe_flags, file_to_write, flags_given
from llava_runner.arguments import ArgumentParser, path, run_command

EPILOG = """A data set is a .jsonl with image, question, and answer or answers in each line,
its folder, or one as it is published. Each figure has its 95 % interval.

exit code: 0 done, 1 below --at-least, 2 cannot be evaluated

examples:
  llava evaluate package --dataset items.jsonl --output results.jsonl
  llava evaluate package --dataset TextVQA_0.5.1_val.json --images train_images
  llava evaluate package --dataset scenes --against tiny-llava
  llava evaluate package --compare other --dataset scenes --html page.html
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
        description="Score a package on a data set, or measure a package or a recipe on a text.",
        epilog=EPILOG,
    )
    parser.add_argument("package", nargs="?", type=path, metavar="PACKAGE", help="a .pte, or the folder of a package")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="also write the figures to FILE")
    add_dataset_flags(parser)
    add_text_flags(parser)
    checkpoint = parser.add_argument_group("the float model")
    checkpoint.add_argument("--against", metavar="CHECKPOINT", help="the checkpoint that the package was made of")
    checkpoint.add_argument(
        "-m", "--model", metavar="CHECKPOINT", help="with --text, in place of a package: quantize it by the recipe"
    )
    add_part_flags(checkpoint)
    add_recipe_flags(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Evaluate as the command line says, and return the exit code. Raises ``UserError`` for the user's mistakes."""
    if arguments.dataset is None and arguments.text is None:
        raise UsageError("--dataset or --text is missing: what the model is evaluated on")
    if arguments.dataset is None:
        _refuse(flags_given(arguments, add_dataset_flags), by="--dataset")
        return run_text(arguments)
    model = ["--model"] if arguments.model is not None else []
    _refuse(flags_given(arguments, add_text_flags) + model + flags_given(arguments, add_recipe_flags), by="--text")
    return run_dataset(arguments)


def _refuse(given: Sequence[str], *, by: str) -> None:
    """Raise ``UsageError`` for flags that are of the other way to evaluate, which ``by`` chooses."""
    if by in given:
        raise UsageError("name either --dataset or --text")
    if given:
        raise UsageError(f"{', '.join(given)}: for {by} alone")
