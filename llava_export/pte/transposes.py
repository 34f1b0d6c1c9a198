"""Takes transposes that undo each other out of XNNPACK's graphs.

XNNPACK's convolutions work channels last. A module that keeps its values so writes a permutation before a convolution,
since torch calls it channels first, and ExecuTorch adds the opposite one for XNNPACK; likewise after it. Each copies
the whole value, and the bytes are the same in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNGraph, XNNStaticTranspose


@contextmanager
def transposes_cancelled() -> Iterator[None]:
    """Inside it, ExecuTorch lowers to XNNPACK without pairs of transposes that undo each other.

    It offers no place for a pass over XNNPACK's own graph, so this one comes before the function that serializes it.
    """
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def cancel_and_serialize(graph: XNNGraph, constants: bytearray) -> bytes:
        cancel_transposes(graph)
        return serialize(graph, constants)

    with patch.object(xnnpack_preprocess, "serialize_xnnpack_binary", cancel_and_serialize):
        yield


def cancel_transposes(graph: XNNGraph) -> None:
    """In place. What read the second of a pair then reads what the first one read."""
    transposes: dict[int, XNNStaticTranspose] = {}  # by the value they write
    same: dict[int, int] = {}  # what the second of a pair writes -> what the first one reads
    read = set(graph.output_ids)
    for node in graph.xnodes:  # each comes after those whose values it reads
        operation = node.xnode_union
        for name in _inputs(operation):
            value = getattr(operation, name)
            setattr(operation, name, same.get(value, value))
        if isinstance(operation, XNNStaticTranspose):
            transposes[operation.output_id] = operation
            first = transposes.get(operation.input_id)
            if first and _is_undone(first, operation) and operation.output_id not in graph.output_ids:
                same[operation.output_id] = first.input_id
                continue
        read |= {getattr(operation, name) for name in _inputs(operation)}
    graph.xnodes = [
        node
        for node in graph.xnodes
        if not isinstance(node.xnode_union, XNNStaticTranspose) or node.xnode_union.output_id in read
    ]


def _inputs(operation: Any) -> list[str]:
    """The fields of an operation that name values it reads."""
    return [name for name in vars(operation) if name.endswith("_id") and not name.startswith("output")]


def _is_undone(first: XNNStaticTranspose, second: XNNStaticTranspose) -> bool:
    return [first.perm[i] for i in second.perm] == list(range(first.num_dims))
