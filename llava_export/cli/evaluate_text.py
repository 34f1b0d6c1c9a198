"""``llava evaluate --text``: perplexity, KL and the same top-1 on a text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from llava_export.cli.flags import (
    DEFAULT_SAMPLES,
    UsageError,
    add_recipe_flags,
    checkpoint_parts,
    chosen_recipe,
    flags_given,
)
from llava_export.cli.written import checkpoint_files, package_files, refuse_to_replace
from llava_export.system import DEVICES, check_device
from llava_runner.arguments import path, positive_int

if TYPE_CHECKING:
    from rich.console import Console

    from llava_export.checkpoint.checkpoint import Checkpoint
    from llava_export.evaluate.text import Estimate, TextFigures
    from llava_export.quantize.weights import CalibratedBlock
    from llava_export.recipe import Recipe


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a measurement on a text."""
    text = parser.add_argument_group("on a text")
    text.add_argument(
        "--text",
        type=path,
        metavar="CORPUS",
        help="text in UTF-8, or .npy with token ids, which are read as they are",
    )
    text.add_argument(
        "--windows",
        type=positive_int,
        default=8,
        metavar="N",
        help="parts of the text to read, evenly spread; fewer where it is short (default: %(default)s)",
    )
    text.add_argument(
        "--window-len", type=positive_int, default=512, metavar="N", help="tokens of a part (default: %(default)s)"
    )
    text.add_argument(
        "--device",
        choices=DEVICES,
        default=DEVICES[0],
        help="what computes the float model and a recipe; a package's program runs on the CPU (default: %(default)s)",
    )


def run_text(arguments: argparse.Namespace) -> int:
    """Measure a package or a recipe on a text, print the figures, and return the exit code.

    Raises ``UserError`` for the user's mistakes.
    """
    package: Path | None = arguments.package
    _check_choice(arguments)
    chosen_recipe(arguments)  # a mistake is found before anything is read
    refuse_to_replace([arguments.json], _read_paths(arguments))
    from llava_export.cli.terminal import new_console, progress, silence_libraries

    silence_libraries()
    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_export.corpus import open_corpus
    from llava_export.evaluate.text import evaluate_program, evaluate_recipe, fitted_recipe, num_steps
    from llava_export.recipe import Recipe, recipe_text
    from llava_export.staging import write_whole
    from llava_runner.program import Program
    from llava_runner.program_file import find_program

    check_device(arguments.device)
    checkpoint = open_checkpoint(arguments.against if package else arguments.model, **checkpoint_parts(arguments))
    corpus = open_corpus(arguments.text, checkpoint)
    windows = corpus.windows(arguments.windows, length=arguments.window_len)
    program = Program.open(find_program(package)) if package else None
    console = new_console()
    if program:
        recipe = Recipe.from_dict(program.card.recipe)
        with progress(console, steps=num_steps(checkpoint, windows)) as step:
            figures = evaluate_program(program, checkpoint, windows, device=arguments.device, on_step=step)
    else:
        recipe = fitted_recipe(checkpoint, chosen_recipe(arguments), windows)
        with (
            _calibrated(arguments, checkpoint, recipe, console) as layers,
            progress(console, steps=num_steps(checkpoint, windows)) as step,
        ):
            figures = evaluate_recipe(
                checkpoint, recipe, windows, calibrated=layers, device=arguments.device, on_step=step
            )
    subject = str(package) if package else f"{checkpoint.name} in torch"
    print_figures(console, figures, title=f"{subject}, recipe {recipe_text(recipe.to_dict())}", text=arguments.text)
    if arguments.json:
        written = {
            "package": package and str(package),
            "checkpoint": checkpoint.name,
            "text": str(arguments.text),
            "recipe": recipe.to_dict(),
            **figures.to_dict(),
        }
        write_whole(arguments.json, json.dumps(written, indent=2, allow_nan=False) + "\n")
    return 0


@contextmanager
def _calibrated(
    arguments: argparse.Namespace, checkpoint: Checkpoint, recipe: Recipe, console: Console
) -> Iterator[Callable[[str], CalibratedBlock | None]]:
    """Yield the calibrated layers of a recipe, by their names, and none if it does not calibrate."""
    if not recipe.calibrates:
        yield lambda fqn: None
        return
    from llava_export.calibration.calibrate import calibrate_with
    from llava_export.calibration.samples import open_samples
    from llava_export.checkpoint.prompt import find_prompt
    from llava_export.cli.terminal import ProgressStages
    from llava_export.pte.plan import DEFAULT_LENGTH

    samples = open_samples(arguments.calibration_data)
    stages = ProgressStages(console, total=2)
    with TemporaryDirectory() as scratch:
        with stages.running():
            store = calibrate_with(
                samples,
                checkpoint,
                recipe,
                prompt=find_prompt(checkpoint),
                max_len=min(DEFAULT_LENGTH, checkpoint.config.text.max_context_len),
                limit=arguments.calibration_samples or DEFAULT_SAMPLES,
                folder=Path(scratch) / "layers",
                device=arguments.device,
                stages=stages,
            )
        yield store.layer


def print_figures(console: Console, figures: TextFigures, *, title: str, text: Path) -> None:
    """Print a table of the figures with their intervals."""
    from llava_export.cli.terminal import plain_table

    console.print(title, soft_wrap=True)
    console.print(f"{figures.windows} windows of {figures.window_len} tokens of {text}\n", style="dim", soft_wrap=True)
    table = plain_table("", "value", "95 % interval", right=("value", "95 % interval"))
    rows: tuple[tuple[str, Estimate, str], ...] = (
        ("perplexity of the float model", figures.float_perplexity, ".2f"),
        ("perplexity", figures.perplexity, ".2f"),
        ("KL, in nats", figures.kl, ".4f"),
        ("same top-1", figures.top1, ".1%"),
    )
    for name, estimate, form in rows:
        interval = "" if estimate.low is None else f"{estimate.low:{form}} to {estimate.high:{form}}"
        table.add_row(name, f"{estimate.value:{form}}", interval)
    console.print(table)


def _check_choice(arguments: argparse.Namespace) -> None:
    """Raise ``UsageError`` unless a command line names a package with its checkpoint, or a checkpoint alone."""
    if arguments.package is None:
        if arguments.model is None:
            raise UsageError("name a package and --against its checkpoint, or --model for a recipe without an export")
        if arguments.against is not None:
            raise UsageError("--against is for packages; --model is compared with itself in float")
        return
    if arguments.model is not None:
        raise UsageError("name either a package or --model; the checkpoint of a package is --against")
    if arguments.against is None:
        raise UsageError("--against is missing: the checkpoint that the package was made of")
    if given := flags_given(arguments, add_recipe_flags):
        raise UsageError(f"{', '.join(given)}: for --model alone; a package has its recipe")


def _read_paths(arguments: argparse.Namespace) -> Iterator[Path]:
    """Yield the files and folders that are read. Raises ``CalibrationError`` for samples that cannot be."""
    yield arguments.text
    yield from package_files(arguments.package) if arguments.package else ()
    yield from checkpoint_files(arguments.against, arguments.model, *checkpoint_parts(arguments).values())
    if arguments.calibration_data is not None:
        from llava_export.calibration.samples import open_samples

        yield arguments.calibration_data
        yield from (sample.image for sample in open_samples(arguments.calibration_data) if sample.image is not None)
