"""``llava split``: a checkpoint taken apart, for those who convert its parts with other tools."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from llava_export.cli.flags import add_checkpoint_flags, add_output_dir, checkpoint_parts
from llava_runner.arguments import ArgumentParser, run_command

EPILOG = """It writes llava.projector, llava.clip, and the folder text-model: a checkpoint
of the language model that transformers and llama.cpp's own converter read. The
original is not changed.
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava split") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava split") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Take a LLaVA-family checkpoint apart: projector, vision tower, language model.",
        epilog=EPILOG,
    )
    add_checkpoint_flags(parser, default=None)
    add_output_dir(parser)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Split as the command line says. Raises a ``UserError`` for the user's mistakes."""
    from llava_export.cli.terminal import silence_libraries

    silence_libraries()
    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_export.split import split

    checkpoint = open_checkpoint(arguments.model, **checkpoint_parts(arguments))
    for path in split(checkpoint, arguments.output_dir, overwrite=arguments.overwrite):
        print(path)
