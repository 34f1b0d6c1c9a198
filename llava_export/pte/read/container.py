"""Where the pieces of a ``.pte`` lie: the flatbuffer, the segments, the payloads and the named data.

The file begins with a flatbuffer that describes the methods. Behind it lie segments: the methods' constants, the
payloads of their delegates, and the named data in which delegates find their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llava_export.pte.read.bounds import MAX_INLINE_PAYLOADS, check_program
from llava_export.pte.read.execution_plan import delegates, payload_of
from llava_export.pte.read.flatbuffers import decoded
from llava_export.pte.read.xnnpack_graph import HEAD, XNNPACK, Graph, flatbuffer_in, graphs
from llava_runner.program_file import EXTENDED_HEADER_MAGIC, PTE_HEAD, PTE_IDENTIFIER_PREFIX, check_file

PROGRAM_SCHEMA = "exir/_serialize/program.fbs"

Payload = tuple[str, int]  # how a delegate refers to its payload: see ``execution_plan.payload_of``


class Span(NamedTuple):
    """A range of bytes in the file."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """Return the position behind the last byte."""
        return self.start + self.size


def layout(path: Path) -> tuple[int, int]:
    """Return the size of the flatbuffer and the position at which segments begin, in bytes.

    Raises ``PackageError`` if the file is no ExecuTorch program, or a truncated one.
    """
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(PTE_HEAD.size)
    if len(head) == PTE_HEAD.size:
        identifier, magic, _, program_size, segment_base, _ = PTE_HEAD.unpack(head)
        if identifier.startswith(PTE_IDENTIFIER_PREFIX) and magic != EXTENDED_HEADER_MAGIC:
            size = path.stat().st_size  # a program without weights and delegates is nothing but the flatbuffer
            return size, size
    check_file(path)
    return program_size, segment_base


class Container:
    """A program's file with its flatbuffer decoded.

    ``program`` is the flatbuffer's root table and ``plans`` the methods in it. ``segments`` are in the program's order.
    ``named`` has the segment of each key of the named data, and ``payloads`` the bytes of each delegate's payload.

    Raises ``ValueError``, and other errors of Python's about wrong values, if the file is damaged.
    """

    def __init__(self, file: BinaryIO, *, program_size: int, segment_base: int) -> None:
        self._file = file
        self.size = file.seek(0, 2)
        self.flatbuffer = self.read(Span(0, program_size))
        (program,) = decoded(PROGRAM_SCHEMA, [self.flatbuffer])
        check_program(program, size=program_size)
        self.program: dict[str, Any] = program
        self.plans: list[dict[str, Any]] = program["execution_plan"]
        self.segments = [Span(segment_base + it["offset"], it["size"]) for it in program.get("segments", ())]
        self.named = {it["key"]: self.segments[it["segment_index"]] for it in program.get("named_data", ())}
        self.payloads = self._find_payloads()

    def read(self, span: Span) -> bytes:
        """Return some bytes of the file. Raises ``ValueError`` if they do not lie within it."""
        if span.end > self.size:
            raise ValueError("something ends behind the file")
        self._file.seek(span.start)
        return self._file.read(span.size)

    def within_constants(self) -> set[Span]:
        """Return the segments of named data that lie within the segment of the methods' constants."""
        table = self.program.get("constant_segment")
        if not table or not table.get("offsets"):
            return set()
        constants = self.segments[table["segment_index"]]
        return {it for it in self.named.values() if constants.start <= it.start and it.end <= constants.end} - {
            constants
        }

    def xnnpack_graphs(self) -> dict[Payload, Graph]:
        """Read the payloads of XNNPACK's delegates. Return those that have the known form, decoded."""
        flatbuffers: dict[Payload, bytes] = {}
        unread = self.size
        for payload in {payload_of(it): None for plan in self.plans for it in delegates(plan) if it["id"] == XNNPACK}:
            span = self.payloads[payload]
            head = self.read(span._replace(size=min(span.size, HEAD.size)))
            if where := flatbuffer_in(head, size=span.size):
                offset, size = where
                unread -= size
                if unread < 0:
                    raise ValueError("delegates' payloads overlap")
                flatbuffers[payload] = self.read(Span(span.start + offset, size))
        return dict(zip(flatbuffers, graphs(flatbuffers.values()), strict=True))

    def _find_payloads(self) -> dict[Payload, Span]:
        found: dict[Payload, Span] = {}
        if len(self.program.get("backend_delegate_data", ())) > MAX_INLINE_PAYLOADS:
            raise ValueError("it has too many payloads in its flatbuffer")
        for location, index in {payload_of(delegate): None for plan in self.plans for delegate in delegates(plan)}:
            if location == "SEGMENT":
                found[location, index] = self.segments[index]
            else:
                data = bytes(self.program["backend_delegate_data"][index].get("data", ()))
                found[location, index] = Span(self.flatbuffer.index(data), len(data))
        return found
