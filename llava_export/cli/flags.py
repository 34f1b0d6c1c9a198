"""Flags that several commands have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava_export.families.prompts import PROMPTS
from llava_runner.arguments import path

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"


def add_checkpoint_flags(parser: argparse.ArgumentParser, *, default: str | None = DEFAULT_MODEL) -> None:
    """Add ``--model``, and the flags for parts of it that ``checkpoint_parts`` reads.

    Without a ``default`` model the flag is required.
    """
    parser.add_argument(
        "-m",
        "--model",
        default=default,
        required=default is None,
        help="hub id, folder of a checkpoint or LoRA adapter, or a built-in one like tiny-mobilevlm"
        + (" (default: %(default)s)" if default else ""),
    )
    add_part_flags(parser)


def add_part_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags for parts of a model, which ``checkpoint_parts`` reads."""
    parser.add_argument(
        "--base-model",
        metavar="MODEL",
        help="hub id or folder of the model that an adapter or projector belongs to (default: the one it names)",
    )
    parser.add_argument("--projector", metavar="PATH", help="file or folder of a projector to use: mm_projector.bin")
    parser.add_argument(
        "--vision-tower",
        metavar="MODEL",
        help="hub id or folder of the CLIP tower, where the checkpoint has none inside; where it has one, a folder "
        "with config.json alone gives its sizes",
    )


def checkpoint_parts(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Return what a command line says of the parts of ``--model``, as ``open_checkpoint`` takes it."""
    return {
        "base_model": arguments.base_model,
        "projector": arguments.projector,
        "vision_tower": arguments.vision_tower,
    }


def add_prompt_template(parser: argparse._ActionsContainer) -> None:
    """Add ``--prompt-template``."""
    parser.add_argument(
        "--prompt-template",
        metavar="PROMPT",
        help=f"{', '.join(PROMPTS)}, or a file with a chat template (default: the checkpoint's own, or its family's)",
    )


def add_output_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--output-dir`` and ``--overwrite``."""
    parser.add_argument(
        "--output-dir",
        type=output_folder,
        default=Path(),
        metavar="DIR",
        help="folder to write to (default: the current one)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files there that no earlier run of this command made"
    )


def output_folder(text: str) -> Path:
    """Return a path that is a folder or does not exist."""
    folder = path(text)
    if folder.exists() and not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file")
    return folder


def existing_file(text: str) -> Path:
    """Return the path of a file that exists."""
    file = path(text)
    if not file.is_file():
        raise argparse.ArgumentTypeError(f"{text} does not exist" if not file.exists() else f"{text} is not a file")
    return file


def file_to_write(text: str) -> Path:
    """Return the path of a file whose folder exists."""
    file = path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    if not file.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder of {text} does not exist")
    return file
