"""What a program may ask of its reader: work and output that grow with its file, and no faster.

Everything in a program refers to something else by an index, and many may refer to one thing. A list of a thousand
tensors that is passed a thousand times would be a million. Programs that a compiler wrote stay far within these bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_DIMENSIONS = 16  # of a tensor, as ExecuTorch's runtime allows
MAX_METHODS = 1024
MAX_ARGUMENTS = 4096  # inputs and outputs of a method
MAX_INLINE_PAYLOADS = 4096  # delegates' payloads inside the flatbuffer, each of which has to be searched for
VISITS_PER_BYTE = 4  # a reference takes at least 4 bytes, so 0.25 is what a file without repetition has


def check_program(program: dict[str, Any], *, size: int) -> None:
    """Raise ``ValueError`` if reading a program would take too long. ``size`` is that of its flatbuffer in bytes."""
    plans = program["execution_plan"]
    if len(plans) > MAX_METHODS:
        raise ValueError(f"it has {len(plans):,} methods")
    visits = 0
    for plan in plans:
        if len(plan.get("inputs", ())) + len(plan.get("outputs", ())) > MAX_ARGUMENTS:
            raise ValueError(f"a method has more than {MAX_ARGUMENTS:,} inputs and outputs")
        lengths = [_length(value) for value in plan["values"]]
        visits += sum(lengths[index] for index in _references(plan))
        if visits > VISITS_PER_BYTE * size:
            raise ValueError("it refers to the same values over and over")


def check_dimensions(sizes: Any) -> None:
    """Raise ``ValueError`` if a tensor has more dimensions than any that can be run."""
    if len(sizes) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(sizes):,} dimensions")


def _length(value: dict[str, Any]) -> int:
    """Return how many things a value stands for, checked: one, or the items of a list."""
    fields = value.get("val") or {}
    if value["val_type"] == "Tensor":
        check_dimensions(fields.get("sizes", ()))
        return 1
    items = next(iter(fields.values()), None)
    return 1 + len(items) if isinstance(items, list | str) else 1


def _references(plan: dict[str, Any]) -> Iterator[int]:
    """Yield the index of a value for each time that a method names it."""
    yield from plan.get("inputs", ())
    yield from plan.get("outputs", ())
    for chain in plan.get("chains", ()):
        for instruction in chain.get("instructions", ()):
            yield from (instruction.get("instr_args") or {}).get("args", ())
