"""``llava inspect`` takes work and memory in proportion to the file, whatever the offsets and indices in it show."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import flatbuffers
import pytest

from llava_export.pte.read import bounds, execution_plan
from llava_export.pte.read.program import read_pte
from llava_runner.errors import PackageError

# Slots of ExecuTorch's schema, by table and field.
PROGRAM_PLANS, PROGRAM_PAYLOADS, PROGRAM_SEGMENTS = 1, 3, 4
PLAN_NAME, PLAN_VALUES, PLAN_INPUTS, PLAN_OUTPUTS, PLAN_CHAINS, PLAN_OPERATORS, PLAN_DELEGATES = 0, 2, 3, 4, 5, 6, 7
TENSOR, INT_LIST, TENSOR_LIST = 5, 7, 10  # of the union of values
KERNEL_CALL = 1  # of the union of instructions


class Writer(flatbuffers.Builder):
    """A builder of flatbuffers that may use one offset many times."""

    def table(self, **slots: tuple[str, int]) -> int:
        """Add a table. ``slots`` are ``_NUMBER=(kind, value)``, where the kind is offset, uint8, uint32 or uint64."""
        self.StartObject(16)
        for name, (kind, value) in slots.items():
            if kind == "offset":
                self.PrependUOffsetTRelativeSlot(int(name[1:]), value, 0)
            else:
                getattr(self, f"Prepend{kind.capitalize()}Slot")(int(name[1:]), value, 0)
        return self.EndObject()

    def offsets(self, *values: int) -> int:
        """Add a list of tables or strings."""
        self.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.PrependUOffsetTRelative(value)
        return self.EndVector()

    def numbers(self, *values: int) -> int:
        """Add a list of int32."""
        self.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.PrependInt32(value)
        return self.EndVector()

    def value(self, kind: int, table: int) -> int:
        """Add a value of a method."""
        return self.table(_0=("uint8", kind), _1=("offset", table))

    def tensor(self, sizes: int) -> int:
        """Add a float32 tensor whose sizes are at an offset."""
        return self.value(TENSOR, self.table(_0=("uint8", 6), _2=("offset", sizes)))

    def program(self, *plans: int, **slots: tuple[str, int]) -> bytes:
        """Return the file of a program with these methods."""
        root = self.table(_1=("offset", self.offsets(*plans)), **slots)
        self.Finish(root, b"ET12")
        return bytes(self.Output())


def shared_tables(n: int) -> bytes:
    """Return a program whose n methods are one, with n values that are one, with n sizes."""
    writer = Writer()
    name = writer.CreateString("forward")
    tensor = writer.tensor(writer.numbers(*[1] * n))
    return writer.program(*[writer.table(_0=("offset", name), _2=("offset", writer.offsets(*[tensor] * n)))] * n)


def shared_strings(n: int) -> bytes:
    """Return a program whose n methods are one, with n operators whose name is one of n bytes."""
    writer = Writer()
    name = writer.CreateString("x" * n)
    operators = writer.offsets(*[writer.table(_0=("offset", name), _1=("offset", name))] * n)
    plan = writer.table(_0=("offset", name), _2=("offset", writer.offsets()), _6=("offset", operators))
    return writer.program(*[plan] * n)


def repeated_list(n: int) -> bytes:
    """Return a program with a call of n arguments, each of them the same list of n tensors."""
    writer = Writer()
    name = writer.CreateString("forward")
    tensor = writer.tensor(writer.numbers(1))
    items = writer.numbers(*[0] * n)
    values = writer.offsets(tensor, writer.value(TENSOR_LIST, writer.table(_0=("offset", items))))
    call = writer.table(_1=("offset", writer.numbers(*[1] * n)))
    instruction = writer.table(_0=("uint8", KERNEL_CALL), _1=("offset", call))
    chains = writer.offsets(writer.table(_2=("offset", writer.offsets(instruction))))
    operators = writer.offsets(writer.table(_0=("offset", name)))
    plan = {"_0": name, "_2": values, "_5": chains, "_6": operators}
    return writer.program(writer.table(**{slot: ("offset", offset) for slot, offset in plan.items()}))


def repeated_output(n: int) -> bytes:
    """Return a program with a method that returns one list of n numbers n times."""
    writer = Writer()
    name = writer.CreateString("labels")
    writer.StartVector(8, n, 8)
    for _ in range(n):
        writer.PrependInt64(7)
    items = writer.EndVector()
    values = writer.offsets(writer.value(INT_LIST, writer.table(_0=("offset", items))))
    plan = {"_0": name, "_2": values, "_4": writer.numbers(*[0] * n)}
    return writer.program(writer.table(**{slot: ("offset", offset) for slot, offset in plan.items()}))


def many_dimensions(n: int) -> bytes:
    """Return a program whose input has n dimensions."""
    writer = Writer()
    name = writer.CreateString("forward")
    values = writer.offsets(writer.tensor(writer.numbers(*[2**31 - 1] * n)))
    plan = {"_0": name, "_2": values, "_3": writer.numbers(0)}
    return writer.program(writer.table(**{slot: ("offset", offset) for slot, offset in plan.items()}))


@pytest.mark.parametrize(
    ("bomb", "n", "message"),
    [
        (shared_tables, 40, "stand for far more than they hold"),
        (shared_tables, 300, "stand for far more than they hold"),
        (shared_strings, 400, "stand for far more than they hold"),
        (repeated_list, 3000, "the same values over and over"),
        (repeated_output, 3000, "the same values over and over"),
        (many_dimensions, 20_000, "20,000 dimensions"),
    ],
)
def test_a_small_file_stands_for_no_large_work(bomb: Callable[[int], bytes], n, message, tmp_path: Path):
    path = tmp_path / "bomb.pte"
    path.write_bytes(bomb(n))
    assert path.stat().st_size < 200_000
    start = time.monotonic()
    with pytest.raises(PackageError, match=message):
        read_pte(path)
    assert time.monotonic() < start + 10


@pytest.mark.parametrize("build", [shared_tables, repeated_list, repeated_output, many_dimensions])
def test_the_same_programs_are_read_where_they_are_small(build: Callable[[int], bytes], tmp_path: Path):
    path = tmp_path / "small.pte"
    path.write_bytes(build(3))
    assert read_pte(path).bytes == path.stat().st_size


def test_methods_and_arguments_are_limited(tmp_path: Path, monkeypatch):
    path = tmp_path / "small.pte"
    path.write_bytes(repeated_output(30))
    monkeypatch.setattr(bounds, "MAX_ARGUMENTS", 29)
    with pytest.raises(PackageError, match="more than 29 inputs and outputs"):
        read_pte(path)
    monkeypatch.setattr(bounds, "MAX_METHODS", 0)
    with pytest.raises(PackageError, match="1 methods"):
        read_pte(path)


def test_a_kind_of_value_that_has_no_name_is_shown_by_its_number():
    plan = {"values": [{"val_type": 99, "val": {}}], "inputs": [0]}
    assert execution_plan.inputs(plan) == ("99",)
