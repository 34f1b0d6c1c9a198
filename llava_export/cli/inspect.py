"""``llava inspect``: what is inside a program, read from the file alone.

Any ExecuTorch program will do. One of this project's has a model card inside, which says what the decoder's linears are
and which bounds the sizes of inputs have.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llava_export.cli.flags import file_to_write
from llava_runner import contract
from llava_runner.arguments import ArgumentParser, path, run_command

if TYPE_CHECKING:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    from llava_export.pte.read.types import Method, Part, PteFile
    from llava_runner.contract import ModelCard

MAX_VALUE_LENGTH = 60  # characters of metadata that are shown


def main(argv: Sequence[str] | None = None, *, prog: str = "llava inspect") -> NoReturn:
    """Run the command and exit."""
    run_command(build_parser(prog), run, argv)


def build_parser(prog: str = "llava inspect") -> ArgumentParser:
    """Return the parser of the command."""
    parser = ArgumentParser(
        prog=prog,
        description="Show what is inside an ExecuTorch program: methods, operators, memory, and\n"
        "what each byte of the file is for.",
        epilog="exit code: 0, or 2 where the file cannot be read",
    )
    parser.add_argument(
        "path", type=path, metavar="PATH", help="a .pte, or the folder of a package; only the program is read"
    )
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="also write all of it to FILE")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Print what is inside. Raises ``UserError`` when it cannot be read."""
    from llava_export.cli.terminal import new_console
    from llava_export.pte.read.describe import card_of, linear_names, to_dict
    from llava_export.pte.read.program import read_pte
    from llava_runner.program_file import find_program

    program = find_program(arguments.path)
    found = read_pte(program)
    card = card_of(found)
    names = linear_names(found, card)
    if arguments.json is not None:
        text = json.dumps(to_dict(program, found, card, names), indent=2)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    console = new_console()
    print_head(console, program, found, card)
    for method in found.methods:
        print_method(console, method, card)
    print_constants(console, found, card)
    print_parts(console, found, names)


def print_head(console: Console, program: Path, found: PteFile, card: ModelCard | None) -> None:
    """Print what the file is, and where it came from if it has a model card."""
    console.print(str(program), style="bold", soft_wrap=True)
    rows = {
        "size": f"{found.bytes:,} bytes",
        "format": f"ExecuTorch {found.identifier}, schema version {found.version}",
    }
    if card:
        from llava_export.checkpoint.images import described
        from llava_export.recipe import recipe_text

        rows |= {"source": card.source, "family": card.family}
        if card.num_image_tokens:
            rows["prompt"] = f"from {card.prompt_source}"
            rows["images"] = described(
                card.image_aspect_ratio, size=card.image_size, resize=card.image_resize, resample=card.image_resample
            )
        else:
            rows["images"] = "none: a language model, which can draft for another"
        rows |= {
            "recipe": recipe_text(card.recipe, has_vision=card.num_image_tokens > 0),
            "exporter": f"ExecuTorch {card.executorch_version}",
        }
    console.print(_grid(rows))


def print_method(console: Console, method: Method, card: ModelCard | None) -> None:
    """Print a method: its signature, its memory and its operators."""
    from rich.columns import Columns
    from rich.padding import Padding

    from llava_export.pte.read.describe import signature, total_bytes

    takes, _, returns = signature(method, card).partition(" -> ")
    memory = f"{method.planned_bytes:,} bytes planned"
    if method.kv_cache:
        memory += f", of it {total_bytes(method.kv_cache):,} KV cache"
    if other_state := total_bytes(method.state) - total_bytes(method.kv_cache):
        memory += f", of it {other_state:,} {'other ' if method.kv_cache else ''}state"
    delegates = ", ".join(f"{count} {backend}" for backend, count in method.delegates.items()) or "none"
    console.print(f"\n{method.name}", style="bold")
    console.print(_grid({"takes": takes, "returns": returns, "memory": memory, "delegates": delegates}))
    counts = {"outside delegates": method.outside, "inside XNNPACK": method.xnnpack}
    tables = [_counts(title, counter) for title, counter in counts.items() if counter]
    if tables:
        console.print(Padding(Columns(tables, padding=(1, 4)), (1, 0, 0, 2), expand=False))


def print_constants(console: Console, found: PteFile, card: ModelCard | None) -> None:
    """Print the values that methods without inputs return: the program's metadata."""
    rows = {name: _shown(value) for name, value in found.constants.items()}
    if card:
        rows[contract.MODEL_CARD] = "where source, family and recipe above are from"
    if rows:
        console.print("\nmetadata", style="bold")
        console.print(_grid(rows))


def print_parts(console: Console, found: PteFile, names: Mapping[Part, str]) -> None:
    """Print what the bytes of the file are for, the largest method and part first, what belongs to no method last."""
    from rich.padding import Padding

    from llava_export.cli.terminal import plain_table

    table = plain_table()
    table.add_column("the file's bytes", overflow="fold", min_width=16)
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("stored as", overflow="fold", min_width=8)
    table.add_column("bytes", justify="right", no_wrap=True)
    totals: Counter[tuple[str, ...]] = Counter()
    for part in found.parts:
        totals[part.methods] += part.bytes
    for methods in sorted(totals, key=lambda it: (not it, -totals[it])):
        table.add_row(", ".join(methods) or "the program itself", "", "", f"{totals[methods]:,}", style="bold")
        for part in sorted(found.parts, key=lambda it: -it.bytes):
            if part.methods == methods:
                table.add_row(
                    Padding(_what(part, names), (0, 0, 0, 2)), str(part.times or ""), part.stored_as, f"{part.bytes:,}"
                )
    table.add_row("all", "", "", f"{found.bytes:,}", style="bold")
    console.print(Padding(table, (1, 0, 0, 0), expand=False))


def _what(part: Part, names: Mapping[Part, str]) -> str:
    """Return what a part of the file is, with its shape."""
    if part.reader:
        return f"{part.kind} for {part.reader}"
    if not part.shape:
        return part.kind
    if part.kind == "embedding":
        return f"{part.kind} {part.shape[0]} x {part.shape[1]}"
    what = f"{names.get(part, part.kind)} {part.shape[0]} -> {part.shape[1]}"
    if part.kind == "linear":
        return what
    *_, height, width, groups = part.shape
    in_groups = f", {groups} groups" if 1 < groups < part.shape[0] else ""
    return f"{what}, {height}x{width}{in_groups}"


def _shown(value: Any) -> str:
    """Return a value as text of at most ``MAX_VALUE_LENGTH`` characters, or its beginning and its length."""
    from llava_export.pte.read.describe import plain, type_text
    from llava_export.pte.read.types import TensorType

    text = type_text(value) if isinstance(value, TensorType) else json.dumps(plain(value))
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}... ({len(text):,} characters)"


def _grid(rows: Mapping[str, str]) -> Padding:
    """Return an indented table of names and values."""
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 0, 0, 2))
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return Padding(table, (0, 0, 0, 2), expand=False)


def _counts(title: str, counts: Counter[str]) -> Table:
    """Return a table of names and how often each occurs, the most frequent first."""
    from llava_export.cli.terminal import plain_table

    table = plain_table()
    table.add_column(title, overflow="fold")
    table.add_column("times", justify="right", no_wrap=True)
    for name, count in counts.most_common():
        table.add_row(name, str(count))
    return table
