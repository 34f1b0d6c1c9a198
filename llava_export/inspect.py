"""``python -m llava_export.inspect``: what is inside a program, read from the file alone.

Any ExecuTorch program will do. One of ours has a model card inside, which says what its decoder's linears are and
between which bounds the sizes of inputs may be.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_runner import contract
from llava_runner.contract import ModelCard
from llava_runner.errors import PackageError, exit_cleanly

if TYPE_CHECKING:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    from llava_export.targets.pte_file import Method, Part, PteFile, TensorType

LONGEST_VALUE = 60  # characters of metadata that are shown
LAYER_LINEARS = ("q/k/v", "attention output", "gate/up", "down")  # of each layer of a decoder
OUTPUT_HEAD = "output head"
ROLES = (*LAYER_LINEARS, OUTPUT_HEAD)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava_export.inspect",
        description="Show what is inside an ExecuTorch program: methods, operators, memory, and what its bytes are.",
        epilog="exit code: 0, or 2 where the file cannot be read",
    )
    parser.add_argument("program", type=Path, metavar="PTE", help="the program; nothing beside it is needed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it to FILE")
    arguments = parser.parse_args()
    exit_cleanly(lambda: run(arguments.program, json_file=arguments.json))


def run(program: Path, *, json_file: Path | None) -> None:
    """Print what is inside. Raises ``UserError`` when it cannot be read."""
    from rich.console import Console

    from llava_export.targets.pte_file import read_pte

    found = read_pte(program)
    card = card_of(found)
    names = linear_names(found, card)
    if json_file is not None:
        text = json.dumps(to_dict(program, found, card, names), indent=2)
        json_file.write_text(text + "\n", encoding="utf-8")
    console = Console(markup=False, highlight=False)  # what the file says may look like markup
    print_head(console, program, found, card)
    for method in found.methods:
        print_method(console, method, card)
    print_constants(console, found, card)
    print_parts(console, found, names)


def card_of(found: PteFile) -> ModelCard | None:
    """None where the program is not ours, or of another version."""
    try:
        return ModelCard.from_json(str(found.constants.get(contract.MODEL_CARD)))
    except PackageError:
        return None


def linear_names(found: PteFile, card: ModelCard | None) -> dict[Part, str]:
    """What the decoder's linears are, as far as shapes and numbers leave no doubt.

    They are taken for those of a Llama decoder in every way that explains all of them. Mostly there is just one; of
    several only that is believed in which they agree.
    """
    decoder = next((method for method in found.methods if method.name == contract.TEXT_DECODER), None)
    parts = [part for part in found.parts if part.kind == "linear" and part.methods == (contract.TEXT_DECODER,)]
    if card is None or decoder is None or len(parts) > len(ROLES):
        return {}
    ways = [way for way in product(parts, repeat=len(ROLES)) if _is_decoder(way, parts, decoder, card)]
    named = [
        {part: " and ".join(role for role, it in zip(ROLES, way, strict=True) if it == part) for part in parts}
        for way in ways
    ]
    return {part: named[0][part] for part in parts if named and len({names[part] for names in named}) == 1}


def signature(method: Method, card: ModelCard | None) -> str:
    """Inputs and outputs with the most that a size may be; and the least, where the contract tells."""
    inputs, outputs = (", ".join(map(_type, values)) or "nothing" for values in (method.inputs, method.outputs))
    text = f"{inputs} -> {outputs}"
    promised = contract.signatures(card).get(method.name, "") if card else ""
    return promised if re.sub(r"\d+\.\.", "", promised) == text.replace("<=", "") else text


def to_dict(program: Path, found: PteFile, card: ModelCard | None, names: Mapping[Part, str]) -> dict[str, Any]:
    """All of it, ready for JSON."""
    return {
        "program": str(program),
        "bytes": found.bytes,
        "identifier": found.identifier,
        "version": found.version,
        "card": asdict(card) if card else None,
        "methods": {
            method.name: {
                "signature": signature(method, card),
                "inputs": _plain(method.inputs),
                "outputs": _plain(method.outputs),
                "delegates": dict(method.delegates),
                "outside": dict(method.outside.most_common()),
                "xnnpack": dict(method.xnnpack.most_common()),
                "planned_bytes": method.planned_bytes,
                "state_bytes": _bytes(method.state),
                "kv_cache_bytes": _bytes(method.kv_cache),
            }
            for method in found.methods
        },
        "metadata": {name: _plain(value) for name, value in found.constants.items()},
        "parts": [{**asdict(part), "name": names.get(part)} for part in found.parts],
    }


def print_head(console: Console, program: Path, found: PteFile, card: ModelCard | None) -> None:
    console.print(str(program), style="bold", soft_wrap=True)
    rows = {
        "size": f"{found.bytes:,} bytes",
        "format": f"ExecuTorch {found.identifier}, schema version {found.version}",
    }
    if card:
        recipe = ", ".join(f"{name} {value}" for name, value in card.recipe.items() if name != "name")
        rows |= {"source": card.source, "family": card.family, "recipe": f"{card.recipe.get('name')}: {recipe}"}
        rows |= {"exporter": f"ExecuTorch {card.executorch_version}"}
    console.print(_grid(rows))


def print_method(console: Console, method: Method, card: ModelCard | None) -> None:
    from rich.columns import Columns
    from rich.padding import Padding

    takes, _, returns = signature(method, card).partition(" -> ")
    memory = f"{method.planned_bytes:,} bytes planned"
    if method.kv_cache:
        memory += f", of it {_bytes(method.kv_cache):,} KV cache"
    if other_state := _bytes(method.state) - _bytes(method.kv_cache):
        memory += f", of it {other_state:,} {'other ' if method.kv_cache else ''}state"
    delegates = ", ".join(f"{count} {backend}" for backend, count in method.delegates.items()) or "none"
    console.print(f"\n{method.name}", style="bold")
    console.print(_grid({"takes": takes, "returns": returns, "memory": memory, "delegates": delegates}))
    counts = {"outside delegates": method.outside, "inside XNNPACK": method.xnnpack}
    tables = [_counts(title, counter) for title, counter in counts.items() if counter]
    if tables:
        console.print(Padding(Columns(tables, padding=(1, 4)), (1, 0, 0, 2), expand=False))


def print_constants(console: Console, found: PteFile, card: ModelCard | None) -> None:
    rows = {name: _shown(value) for name, value in found.constants.items()}
    if card:
        rows[contract.MODEL_CARD] = "where source, family and recipe above are from"
    if rows:
        console.print("\nmetadata", style="bold")
        console.print(_grid(rows))


def print_parts(console: Console, found: PteFile, names: Mapping[Part, str]) -> None:
    """The largest method first, and in it the largest part; what belongs to no method last."""
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
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


def _is_decoder(way: Sequence[Part], parts: Iterable[Part], decoder: Method, card: ModelCard) -> bool:
    """Whether linears can be those of ``ROLES``, two roles perhaps being one part, and no other is left."""
    caches, layers = {cache.sizes for cache in decoder.kv_cache}, len(decoder.kv_cache) // 2
    times = Counter([*way[:-1]] * layers + [way[-1]])
    if len(caches) != 1 or any(times[part] != part.times for part in parts):
        return False
    kv_width = math.prod(next(iter(caches))[2:])
    qkv, attention, gate_up, down, head = (part.shape for part in way)
    return (
        qkv == (card.hidden_size, attention[0] + 2 * kv_width)
        and gate_up == (card.hidden_size, 2 * down[0])
        and attention[1] == down[1] == card.hidden_size
        and head == (card.hidden_size, card.vocab_size)
    )


def _what(part: Part, names: Mapping[Part, str]) -> str:
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


def _type(value: TensorType | str) -> str:
    if isinstance(value, str):
        return value
    sizes = ["?" if value.dynamism == "unbounded" else str(size) for size in value.sizes]
    if value.dynamism == "bounded":
        sizes = [f"<={size}" if size != "1" else size for size in sizes]
    return f"{value.dtype} [{', '.join(sizes)}]"


def _bytes(tensors: Iterable[TensorType]) -> int:
    return sum(tensor.bytes for tensor in tensors)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _shown(value: Any) -> str:
    from llava_export.targets.pte_file import TensorType

    text = _type(value) if isinstance(value, TensorType) else json.dumps(_plain(value))
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}... ({len(text):,} characters)"


def _grid(rows: Mapping[str, str]) -> Padding:
    """Names and values, indented."""
    from rich.padding import Padding
    from rich.table import Table

    table = Table.grid(padding=(0, 0, 0, 2))
    table.add_column(style="dim", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return Padding(table, (0, 0, 0, 2), expand=False)


def _counts(title: str, counts: Counter[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(title, overflow="fold")
    table.add_column("times", justify="right", no_wrap=True)
    for name, count in counts.most_common():
        table.add_row(name, str(count))
    return table


if __name__ == "__main__":
    main()
