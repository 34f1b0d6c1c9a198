"""``llava doctor``: what a checkpoint or a package is, what is used from where, and what is wrong, with remedies."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from llava_export.cli.flags import add_part_flags, add_prompt_template, checkpoint_parts, file_to_write
from llava_runner.arguments import ArgumentParser, path, run_command
from llava_runner.errors import PackageError
from llava_runner.paths import with_home

if TYPE_CHECKING:
    from rich.console import Console

    from llava_export.doctor.findings import Fact, Finding, Report

NARROW = 72  # columns of a terminal; where a fact is from stands below it there
EPILOG = """A package is compared with its manifest and with what is installed on this
machine. How well it answers is what llava verify tells.

exit code: 0 healthy, 1 doubtful, 2 cannot be used

examples:
  llava doctor package
  llava doctor llava-hf/llava-1.5-7b-hf
  llava doctor my-adapter --base-model llava-hf/llava-1.5-7b-hf --weights
"""
VERDICTS = ("healthy", "doubtful", "cannot be used")
STYLES = ("dim", "yellow", "red")
WORDS = ("note", "doubtful", "broken")


def main(argv: Sequence[str] | None = None, *, prog: str = "llava doctor") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava doctor") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Say what a checkpoint or a package is, what is used from where, and what is\n"
        "wrong with it or doubtful, each with its remedy.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "path",
        type=place,
        metavar="PATH",
        help="a .pte, the folder of a package, or a checkpoint: what llava export --model takes",
    )
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="also write all of it to FILE")
    checkpoint = parser.add_argument_group("of a checkpoint")
    checkpoint.add_argument(
        "--weights", action="store_true", help="also read all weights: NaN, infinity, zeros, untrained tokens"
    )
    add_prompt_template(checkpoint)
    add_part_flags(checkpoint)
    return parser


def place(text: str) -> str:
    """Return a path or a hub id as it was given. Raises ``ArgumentTypeError`` if it is empty."""
    path(text)
    return text


def run(arguments: argparse.Namespace) -> int:
    """Print what is found and return the exit code. Raises ``UserError`` for what cannot be examined."""
    from llava_export.cli.terminal import new_console, silence_libraries

    silence_libraries()
    console = new_console()
    report = examine(arguments, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    print_report(console, report)
    return int(report.severity)


def examine(arguments: argparse.Namespace, console: Console) -> Report:
    """Return what is found at a path. Raises ``PackageError`` for GGUF files, and for flags that do not fit."""
    from llava_export.doctor.package import examine_package, is_package

    where = with_home(arguments.path)
    parts = checkpoint_parts(arguments)
    if is_package(where):
        flags = {"prompt_template": arguments.prompt_template, "weights": arguments.weights or None, **parts}
        for name, value in flags.items():
            if value is not None:
                raise PackageError(f"--{name.replace('_', '-')} is for checkpoints, and {where} is a package")
        return examine_package(where)
    if has_gguf_alone(where):
        raise PackageError(f"{where} has GGUF files: llava verify {where} compares them with their checkpoint")
    from llava_export.cli.terminal import progress
    from llava_export.doctor.checkpoint import examine_checkpoint

    with progress(console, steps=None) as on_tensor:
        return examine_checkpoint(
            arguments.path,
            parts=parts,
            prompt_template=arguments.prompt_template,
            reads_weights=arguments.weights,
            on_tensor=on_tensor,
        )


def has_gguf_alone(where: Path) -> bool:
    """Return whether a path is a GGUF file, or a folder with some and without a checkpoint."""
    if not where.is_dir():
        return where.suffix == ".gguf"
    return any(where.glob("*.gguf")) and not (where / "config.json").exists()


def print_report(console: Console, report: Report) -> None:
    """Print the verdict, what is wrong, and what is used from where."""
    console.print(report.subject, style="bold", soft_wrap=True)
    console.print(f"{report.kind}: ", end="")
    console.print(VERDICTS[report.severity], style=f"bold {('green', *STYLES[1:])[report.severity]}")
    for finding in report.findings:
        print_finding(console, finding)
    if report.facts:
        console.print()
        print_facts(console, report.facts)


def print_finding(console: Console, finding: Finding) -> None:
    """Print something that is wrong, with its remedy below it."""
    from rich.padding import Padding
    from rich.text import Text

    console.print()
    what = Text.assemble((f"{WORDS[finding.severity]}: ", STYLES[finding.severity]), finding.what)
    for text, indent in ((what, 0), (Text(finding.remedy), 2)):
        if text and console.is_terminal:
            console.print(Padding(text, (0, 0, 0, indent), expand=False))
        elif text:  # a line each in files and pipes
            console.print(" " * indent, text, sep="", soft_wrap=True)


def print_facts(console: Console, facts: Sequence[Fact]) -> None:
    """Print a table of what is used, and where it is from."""
    from rich.text import Text

    from llava_export.cli.terminal import plain_table

    is_narrow = console.width < NARROW
    table = plain_table("what", "used", *([] if is_narrow else ["from"]))
    for column in table.columns:
        column.overflow = "fold"
    table.columns[-1].max_width = console.width if is_narrow else console.width * 3 // 10
    for fact in facts:
        value, source = Text(fact.value), Text(fact.source, style="dim")
        cells = [Text("\n").join([value, source]) if fact.source else value] if is_narrow else [value, source]
        table.add_row(fact.name, *cells)
    console.print(table)
