"""Removes pairs of transposes that undo each other from XNNPACK's graphs.

torch's convolutions take values with channels first, XNNPACK's with channels last. A module that keeps its values with
channels last must permute them before it calls a convolution. ExecuTorch then adds the opposite permutation for
XNNPACK. The same happens behind the convolution. Each permutation copies the whole value, and after both of them its
bytes are what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNGraph, XNNStaticTranspose


@contextmanager
def transposes_cancelled() -> Iterator[None]:
    """Let ExecuTorch lower to XNNPACK without pairs of transposes that undo each other, inside a ``with`` block."""
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def cancel_and_serialize(graph: XNNGraph, constants: bytearray) -> bytes:
        cancel_transposes(graph)
        return serialize(graph, constants)

    # ExecuTorch has no hook for a pass over XNNPACK's own graph. The last point at which the graph can be changed is
    # the function that serializes it, so that function is replaced for a while.
    xnnpack_preprocess.serialize_xnnpack_binary = cancel_and_serialize
    try:
        yield
    finally:
        xnnpack_preprocess.serialize_xnnpack_binary = serialize


def cancel_transposes(graph: XNNGraph) -> None:
    """Remove pairs of transposes that undo each other from ``graph``, in place.

    What read the output of a pair's second transpose reads the input of the first one instead.
    """
    transposes: dict[int, XNNStaticTranspose] = {}  # by the value they write
    same: dict[int, int] = {}  # the output of a pair's second transpose -> the input of its first one
    read = set(graph.output_ids)
    for node in graph.xnodes:  # sorted: each comes after those whose values it reads
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
    """Return the names of those fields of an operation that hold the values it reads."""
    return [name for name in vars(operation) if name.endswith("_id") and not name.startswith("output")]


def _is_undone(first: XNNStaticTranspose, second: XNNStaticTranspose) -> bool:
    return [first.perm[i] for i in second.perm] == list(range(first.num_dims))
