"""``python -m training.draft``: trains a small language model that drafts for the built-in tiny models."""

from __future__ import annotations

import argparse
from typing import NoReturn

from llava_export.cli.flags import output_folder
from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.errors import UserError

DESCRIPTION = """Train a small language model that drafts for the built-in tiny models.

It reads what they read, without the image: their prompt, questions and
answers, one turn or several. So it knows how an answer is worded, and not
what it says. It has their tokenizer.

The result is a folder as transformers writes it.
"""
EPILOG = """example, which takes a minute:
  python -m training.draft --output draft
  llava export --model draft --text-only --output-dir draft-pte
"""


def build_parser() -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(prog="python -m training.draft", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--output", type=output_folder, required=True, metavar="DIR", help="new or empty folder to write to")
    add("--seed", type=int, default=0, metavar="N", help="seed of weights and order (default: %(default)s)")
    add("--steps", type=positive_int, default=500, metavar="N", help="steps, 16 scenes each (default: %(default)s)")
    return parser


def main() -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(), run, None)


def run(arguments: argparse.Namespace) -> None:
    """Train a draft as the command line says. Raises ``UserError`` if the folder is not empty."""
    if arguments.output.exists() and any(arguments.output.iterdir()):
        raise UserError(f"{arguments.output} is not empty")
    from training.draft_stage import train  # torch and transformers take seconds to import

    train(arguments.output, seed=arguments.seed, steps=arguments.steps)


if __name__ == "__main__":
    main()
