"""``llava verify``, also known as ``test_pte`` and ``test_gguf``: exported files compared with their checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NoReturn

from llava_export.cli.flags import add_part_flags, checkpoint_parts
from llava_runner.arguments import ArgumentParser, path, run_command
from llava_runner.errors import ImageError, PackageError

if TYPE_CHECKING:
    from rich.console import Console

    from llava_export.gguf.comparison import FileComparison
    from llava_export.pte.verify import Comparison
    from llava_runner.contract import Manifest

DEFAULT_PROMPT = "What is in the image?"
NARROW = 60  # columns of a terminal; tables have fewer numbers there
EPILOG = """A package is compared with its golden record: what the float model saw and
answered. The checkpoint is not needed. GGUF files are compared with the
checkpoint, tensor by tensor.

exit code: 0 the same within what the recipe or type allows, 1 different,
2 cannot be compared
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "llava verify") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def published_main() -> NoReturn:
    """Run the command under its published names: ``test_pte PTE [IMAGE]`` and ``test_gguf DIR``."""
    parser = build_parser(Path(sys.argv[0]).name)
    parser.add_argument("second", nargs="?", type=path, metavar="IMAGE", help="the same as --image")

    def run_published(arguments: argparse.Namespace) -> int:
        if arguments.image and arguments.second:
            raise ImageError(f"name one image, not {arguments.image} and {arguments.second}")
        arguments.image = arguments.image or arguments.second
        return run(arguments)

    run_command(parser, run_published, None)


def build_parser(prog: str = "llava verify") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Check that a package, or GGUF files, answer as their checkpoint does.",
        epilog=EPILOG,
    )
    parser.add_argument("path", type=path, metavar="PATH", help="a .pte, or the folder of a package or of GGUF files")
    parser.add_argument(
        "--image",
        "--image-path",
        type=path,
        metavar="PATH",
        help="with a package: also answer a question about this image",
    )
    parser.add_argument("--prompt", help=f"the question about --image (default: {DEFAULT_PROMPT})")
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="with a package: also ask it and this checkpoint about several pictures, and compare the answers",
    )
    checkpoint = parser.add_argument_group("the checkpoint")
    checkpoint.add_argument("--model", help="of GGUF files (default: the one named in the files, and its parts)")
    add_part_flags(checkpoint)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the comparisons and return the exit code. Raises ``UserError`` when they cannot be made."""
    from llava_export.cli.terminal import new_console

    where: Path = arguments.path
    if where.suffix == ".gguf" and not where.is_dir():
        raise PackageError(f"{where}: name the folder of the GGUF files, which belong together")
    has_gguf = where.is_dir() and any(where.glob("*.gguf"))
    has_program = not where.is_dir() or any(where.glob("*.pte")) or not has_gguf
    parts = checkpoint_parts(arguments)
    for flag in ("model", *(name for name, value in parts.items() if value is not None)):
        if getattr(arguments, flag) is not None and not has_gguf and (flag == "model" or not arguments.against):
            raise PackageError(f"--{flag.replace('_', '-')} is for GGUF files, and {where} has none")
    if not has_program and (arguments.image or arguments.against or arguments.prompt is not None):
        raise PackageError(f"--image, --prompt and --against are for packages, and {where} has no .pte")
    if arguments.prompt is not None and not arguments.image:
        raise PackageError("--prompt is the question about --image, which is missing")
    console = new_console()
    failures: list[str] = []
    if has_program:
        failures += verify_package(console, where, image=arguments.image, prompt=arguments.prompt)
        if arguments.against and not failures:
            failures += verify_against(console, where, arguments.against, parts=parts, image=arguments.image)
    if has_gguf:
        failures += verify_gguf(console, where, model=arguments.model, parts=parts)
    for failure in failures:
        console.print(failure, style="red")
    if failures:
        console.print("\nFAIL", style="bold red", end="")
        console.print(": not what was exported")
    else:
        console.print("\nPASS", style="bold green")
    return 1 if failures else 0


def verify_package(console: Console, package: Path, *, image: Path | None, prompt: str | None) -> list[str]:
    """Compare a package with its golden record, ask it about an image, and print both. Return what is wrong."""
    from llava_export.pte.verify import advice, agreement, changed_files, compare, judge, read_manifest
    from llava_export.recipe import Recipe
    from llava_runner.image import load_image
    from llava_runner.program_file import find_program
    from llava_runner.session import Session

    program = find_program(package)
    loaded = load_image(image) if image else None
    manifest = read_manifest(program)
    changed = changed_files(program, manifest)
    if changed:
        return [f"{name} is not the file that was exported: its SHA-256 differs" for name in changed]
    question = DEFAULT_PROMPT if prompt is None else prompt
    answer = None
    if loaded is not None:  # asked first: a mistake in image or prompt is found before the comparison, which takes long
        with Session.load(program, engine="python") as session:
            answer = session.ask(loaded, question)
    comparisons = compare(program, manifest)
    print_comparisons(console, comparisons, manifest)
    console.print(agreement(program), style="dim", soft_wrap=True)
    if answer is not None:
        console.print(f"\n{image}: {question}", soft_wrap=True)
        console.print(answer.strip(), soft_wrap=True)
    failures = judge(comparisons, manifest)
    if failures and (help_with_it := advice(comparisons, Recipe.from_dict(manifest.card.recipe))):
        console.print(help_with_it, soft_wrap=True)
    return failures


def verify_against(
    console: Console, package: Path, model: str, *, parts: Mapping[str, str | None], image: Path | None
) -> list[str]:
    """Ask a package and a checkpoint the same, and print how the answers compare. Return what is wrong."""
    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_export.checkpoint.processor import Processor
    from llava_export.cli.terminal import plain_table, silence_libraries
    from llava_export.pte.against import check_sizes, conversations, described_otherwise, original_of, pictures
    from llava_export.pte.verify import answer_failures, read_manifest
    from llava_export.recipe import Recipe
    from llava_runner.program import Program
    from llava_runner.program_file import find_program, find_tokenizer
    from llava_runner.tokenizer_file import load_tokenizer

    silence_libraries()
    program_path = find_program(package)
    if not read_manifest(program_path).card.num_image_tokens:
        raise PackageError(f"--against asks about pictures, and {program_path} is a language model without images")
    checkpoint = open_checkpoint(model, **parts)
    program = Program.open(program_path)
    tokenizer = load_tokenizer(find_tokenizer(find_program(package).parent))
    card = program.card
    check_sizes(checkpoint, card)
    processor = Processor.open(checkpoint)
    original = original_of(checkpoint, processor, max_context_len=card.max_context_len, eos_ids=card.eos_ids)
    console.print(f"\nagainst {checkpoint.source}: {original.name}", soft_wrap=True)
    recipe = Recipe.from_dict(card.recipe)
    table = plain_table("picture", "answer", "cosine", "top-1", "KL", right=("cosine", "top-1", "KL"))
    failures = described_otherwise(card, checkpoint)
    for found in conversations(program, tokenizer, original=original, processor=processor, pictures=pictures(image)):
        assert found.features is not None
        table.add_row(found.name, "image features", f"{found.features.cosine:.5f}")
        failures += found.failures + [
            f"{found.name}: {it}" for it in found.features.failures(recipe.feature_thresholds)
        ]
        for number, turn in enumerate(found.turns, start=1):
            same = sum(bool(it.top1) for it in turn)
            kl = fmean(it.kl or 0.0 for it in turn)
            cosine = min(it.cosine for it in turn)
            table.add_row(found.name, f"question {number}", f"{cosine:.5f}", f"{same} of {len(turn)}", f"{kl:.5f}")
            failures += [f"{found.name}, question {number}: {it}" for it in answer_failures(turn, recipe.thresholds)]
    console.print(table)
    return failures


def verify_gguf(console: Console, folder: Path, *, model: str | None, parts: Mapping[str, str | None]) -> list[str]:
    """Compare GGUF files with their checkpoint and print the result. Return what is wrong."""
    from llava_export.gguf.verify import check

    failures = []
    for comparison in check(folder, model=model, parts=parts):
        print_file_comparison(console, comparison)
        failures += comparison.failures
    return failures


def print_comparisons(console: Console, comparisons: list[Comparison], manifest: Manifest) -> None:
    """Print a table with a row for each stage."""
    from importlib.metadata import version

    from llava_export.cli.terminal import plain_table

    card = manifest.card
    console.print(
        f"{manifest.program}: {card.source}, recipe {card.recipe.get('name')}, {len(manifest.files)} files intact"
    )
    if version("executorch") != card.executorch_version:
        console.print(
            f"exported with ExecuTorch {card.executorch_version}, run with {version('executorch')}", style="yellow"
        )
    wide = ("cosine", "max error", "top-1", "top-5", "KL")
    numbers = wide if console.width >= NARROW else ("cosine", "top-1", "KL")
    table = plain_table("stage", *numbers, right=numbers)
    for row in comparisons:
        cells = {"cosine": f"{row.cosine:.5f}", "max error": f"{row.max_error:.4f}"}
        if row.kl is not None:
            cells |= {"top-1": "same" if row.top1 else "other", "top-5": f"{row.top5:.0%}", "KL": f"{row.kl:.5f}"}
        table.add_row(row.stage, *(cells.get(number, "") for number in numbers))
    console.print(table)


def print_file_comparison(console: Console, comparison: FileComparison) -> None:
    """Print a table of the errors of a GGUF file by type, and how llama.cpp's next tokens compare."""
    from llava_export.cli.terminal import plain_table

    wide = ("tensors", "mean error", "largest", "allowed")
    numbers = wide if console.width >= NARROW else ("largest", "allowed")
    table = plain_table(f"{comparison.name}, type", *numbers, right=numbers)
    for kind in comparison.kinds:
        cells = {
            "tensors": str(kind.count),
            "mean error": f"{kind.mean_error:.2e}",
            "largest": f"{kind.largest_error:.2e}",
            "allowed": f"{kind.allowed:g}",
        }
        table.add_row(kind.name, *(cells[number] for number in numbers))
    console.print(table)
    for note in comparison.notes:
        console.print(note, style="dim")
