"""Flags that several commands have in common."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

from llava_export.errors import RecipeError
from llava_export.families.prompts import PROMPTS
from llava_export.recipe import (
    ALGORITHMS,
    CALIBRATED,
    CALIBRATING,
    DEFAULT_RECIPE,
    EMBEDDING_BITS,
    KV_CACHES,
    LINEAR_SCHEMES,
    RECIPES,
    Recipe,
)
from llava_runner.arguments import path, positive_int
from llava_runner.errors import UserError

PLOT_FORMATS = (".png", ".svg", ".pdf")
UNITS = {
    **dict.fromkeys(("", "b", "byte", "bytes"), 1),
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)},
}
DEFAULT_SAMPLES = 128  # to calibrate with
DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
RECIPE_CHANGES = ("group_size", "embedding_bits", "head", "vision", "kv_cache", "algorithm")  # flags and fields


class UsageError(UserError):
    """Options that do not go together."""


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
        help="hub id or folder of the vision tower, where the checkpoint has none inside; where it has one, a folder "
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


def add_recipe_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add ``--recipe``, and the flags that change one, as a group, and return it. ``chosen_recipe`` reads them."""
    recipe = parser.add_argument_group("what is quantized, and how")
    recipe.add_argument(
        "--recipe",
        choices=RECIPES,
        default=DEFAULT_RECIPE,
        help="8da4w has 8-bit dynamic activations and 4-bit weights (default: %(default)s)",
    )
    recipe.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="input features that share a 4-bit scale (default: 128, 64 or 32; 32 below a billion parameters)",
    )
    recipe.add_argument(
        "--embedding-bits", type=int, choices=EMBEDDING_BITS, help="of the token embedding (default: the recipe's)"
    )
    recipe.add_argument(
        "--head", choices=LINEAR_SCHEMES, help="the linear that gives the logits (default: 8da8w if that costs little)"
    )
    recipe.add_argument("--vision", choices=LINEAR_SCHEMES, help="tower and projector linears (default: the recipe's)")
    recipe.add_argument("--kv-cache", choices=KV_CACHES, help="type of cached keys and values (default: the recipe's)")
    recipe.add_argument(
        "--algorithm",
        choices=ALGORITHMS,
        help=f"how 4-bit weights are rounded; {', '.join(CALIBRATED)} read samples (default: mse)",
    )
    recipe.add_argument(
        "--calibration-data",
        type=path,
        metavar="PATH",
        help="samples: folder or .jsonl of image, question, answer; .txt; .npy (default: what ships with llava)",
    )
    recipe.add_argument(
        "--calibration-samples",
        type=positive_int,
        metavar="N",
        help=f"use at most N samples, evenly spread (default: {DEFAULT_SAMPLES})",
    )
    return recipe


def byte_count(text: str) -> int:
    """Return the bytes that a text such as 3.6GB stands for. Raises ``ArgumentTypeError`` for another text."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([a-z]*)", text.strip().lower(), re.ASCII)
    unit = UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of bytes, such as 3.6GB, 950MB, 3.5GiB, 800MiB or 750000"
        )
    count = int(Decimal(match[1]) * unit)
    if count == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a byte")
    return count


def chosen_recipe(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe of a command line. Raises ``RecipeError`` for values that no recipe can have."""
    recipe = RECIPES[arguments.recipe].with_changes(**{name: getattr(arguments, name) for name in RECIPE_CHANGES})
    if not recipe.calibrates and not getattr(arguments, "budget", None):
        for flag in ("calibration_data", "calibration_samples"):
            if getattr(arguments, flag) is not None:
                name = flag.replace("_", "-")
                raise RecipeError(f"--{name} is for --algorithm {CALIBRATING}; {recipe.algorithm} reads no samples")
    return recipe


def flags_given(arguments: argparse.Namespace, add: Callable[[argparse.ArgumentParser], object]) -> list[str]:
    """Return those of the flags that ``add`` adds which a command line has, with values other than their defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    defaults = vars(parser.parse_args([]))
    return [f"--{name.replace('_', '-')}" for name in defaults if getattr(arguments, name) != defaults[name]]


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


def plot_file(text: str) -> Path:
    """Return the path of a plot. Raises ``ArgumentTypeError`` if it cannot be drawn or written."""
    path = file_to_write(text)
    if path.suffix not in PLOT_FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: it must end in {', '.join(PLOT_FORMATS)}")
    if not find_spec("matplotlib"):
        raise argparse.ArgumentTypeError("matplotlib is missing: pip install llava-export[benchmark]")
    return path
