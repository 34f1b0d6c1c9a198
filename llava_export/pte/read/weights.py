"""The weights in a program's file: which bytes they are, and which methods read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_export.pte.read.container import Container, Payload, Span
from llava_export.pte.read.execution_plan import calls, delegates, is_stored, payload_of, tensor_type, tensors
from llava_export.pte.read.types import Label
from llava_export.pte.read.xnnpack_graph import Graph

EMBEDDINGS = {  # operator -> bits of a value; None where the table's type says it
    "aten::embedding": None,
    "quantized_decomposed::embedding_byte": 8,
    "quantized_decomposed::embedding_4bit": 4,
    "quantized_decomposed::embedding_2bit": 2,
}


@dataclass
class Weight:
    """A weight: where its values are, what it is, and the methods that read it."""

    place: Span
    label: Label
    methods: set[str] = field(default_factory=set)


def find_weights(container: Container, graphs: Mapping[Payload, Graph]) -> dict[Span, Weight]:
    """Return the weight that each range of bytes belongs to. A weight with scales and bias has several ranges.

    Scales or a bias that several weights share belong to the first of them. A linear may be an embedding, too: then it
    has the label of the linear.
    """
    constants = _Constants(container)
    found: dict[Span, Weight] = {}
    for plan in container.plans:
        for spans, label in [*constants.weights(plan), *_delegated(plan, graphs, container.named)]:
            weight = found.setdefault(spans[0], Weight(spans[0], label))
            weight.methods.add(plan["name"])
            if label.kind == "linear" and weight.label.kind == "embedding":
                weight.label = label
            for span in spans[1:]:
                found.setdefault(span, weight)
    return found


class _Constants:
    """The weights that methods hold themselves, outside of delegates."""

    def __init__(self, container: Container) -> None:
        self._program = container.program
        self._segments = container.segments
        # Tables of constants have offsets and no sizes. Several tensors may show one constant: the largest counts.
        self._sizes: Counter[int] = Counter()
        for plan in container.plans:
            for tensor in filter(is_stored, tensors(plan, range(len(plan["values"])))):
                index, size = tensor["data_buffer_idx"], tensor_type(tensor).bytes
                self._sizes[index] = max(self._sizes[index], size)

    def weights(self, plan: dict[str, Any]) -> Iterator[tuple[list[Span], Label]]:
        """Yield the weights of a method. An embedding is its table with the scales; others are one tensor each."""
        for reader, values in calls(plan):
            stored = [it for it in tensors(plan, values) if is_stored(it) and tensor_type(it).bytes]
            if stored and reader in EMBEDDINGS:
                yield [self._span(tensor) for tensor in stored], _embedding_label(reader, stored)
                continue
            for tensor in stored:
                kind = "initial state" if tensor.get("allocation_info") else "constants"
                yield [self._span(tensor)], Label(kind, (), tensor_type(tensor).dtype, reader)

    def _span(self, tensor: dict[str, Any]) -> Span:
        """Return the bytes of a constant, or of the value that state begins with."""
        index = tensor["data_buffer_idx"]
        table, size = self._program["constant_segment"], self._sizes[index]
        if tensor.get("allocation_info"):
            extra = tensor.get("extra_tensor_info") or {}
            table = self._program["mutable_data_segments"][extra.get("mutable_data_segments_idx", 0)]
            size = tensor_type(tensor).bytes
        return Span(self._segments[table["segment_index"]].start + table["offsets"][index], size)


def _delegated(
    plan: dict[str, Any], graphs: Mapping[Payload, Graph], named: Mapping[str, Span]
) -> Iterator[tuple[list[Span], Label]]:
    """Yield the weights of a method's delegates that are in this file. Others may be in a file of their own."""
    for delegate in delegates(plan):
        payload = payload_of(delegate)
        for keys, label in graphs[payload].weights() if payload in graphs else ():
            if spans := [named[key] for key in keys if key in named]:
                yield spans, label


def _embedding_label(operator: str, stored: Sequence[dict[str, Any]]) -> Label:
    """Return the label of an embedding. ``stored`` are its table and, if it is quantized, its scales."""
    table, bits = tensor_type(stored[0]), EMBEDDINGS[operator]
    if bits is None:
        return Label("embedding", table.sizes, table.dtype)
    rows, columns = table.sizes[0], table.sizes[1] * 8 // bits  # several values to a byte
    scales = math.prod(stored[1]["sizes"]) // rows
    stored_as = f"int{bits}, groups of {columns // scales}" if scales > 1 else f"int{bits} per row"
    return Label("embedding", (rows, columns), stored_as)
