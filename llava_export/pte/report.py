"""The delegation report: which operators XNNPACK runs, which stay outside, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch.fx import Node

# Every operator that may stay outside XNNPACK, with the reason. An operator that is not listed is a regression: see
# MethodReport.unexplained.
REASONS = {
    "llama.update_cache": "writes the KV cache in place; XNNPACK has no mutable state",
    "llama.custom_sdpa": "attention over the cache up to the current position, which only the operator knows",
    "aten.split_with_sizes_copy": "XNNPACK cannot slice while T is dynamic; a fused linear and a copy beat two linears",
    "aten.view_copy": "becomes an alias when memory is planned: no copy, no cost",
    "aten.slice_copy": "rows of the rotary tables for T positions, and the last position: sizes are dynamic",
    "aten._to_copy": "uint8 pixels to float, rows to the KV cache's type and back; XNNPACK converts neither",
    "aten.constant_pad_nd": "padding to a square depends on the image's size",
    "aten.embedding": "one lookup of T rows",
    "torchao.dequantize_affine": "fused into the embedding's quantized lookup when serialized",
    "aten._local_scalar_dense": "reads the start position",
    "aten.sym_size": "number of tokens, or of pixels a side",
    "aten._assert_scalar": "the context's bounds",
}
# The operators that serializing makes of others: as they are named in a program, and in ``REASONS``.
SERIALIZED = {
    "executorch_prim.et_view": "aten.view_copy",
    "quantized_decomposed.embedding_byte": "aten.embedding",
    "quantized_decomposed.embedding_4bit": "aten.embedding",
}
SCALARS = "executorch_prim."  # how a program names arithmetic on sizes
SCALAR_MODULES = ("_operator", "math", "torch")  # arithmetic on sizes, done once a call


@dataclass(frozen=True)
class MethodReport:
    """The operators of one method, with how often each occurs: in its delegates, and outside of them."""

    method: str
    delegates: int
    delegated: Counter[str]
    outside: Counter[str]

    @property
    def unexplained(self) -> list[str]:
        """Return the operators outside of delegates for which ``REASONS`` has no reason, sorted."""
        return sorted(name for name in self.outside if name not in REASONS)


def delegation_report(lowered: EdgeProgramManager) -> list[MethodReport]:
    """Return a report for each method, in alphabetical order.

    ``lowered`` is what ``lower`` returned, before ``serialize``, which changes the graphs.
    """
    reports = []
    for method in sorted(lowered.methods):
        graph_module = lowered.exported_program(method).graph_module
        delegates = 0
        delegated: Counter[str] = Counter()
        outside: Counter[str] = Counter()
        for node in graph_module.graph.nodes:
            if node.op != "call_function":
                continue
            if getattr(node.target, "__name__", "") == "executorch_call_delegate":
                delegates += 1
                inner = getattr(graph_module, node.args[0].target).original_module.graph_module.graph
                delegated.update(_name(n) for n in inner.nodes if n.op == "call_function" and not _is_scalar(n))
            elif not _is_scalar(node):
                outside[_name(node)] += 1
        reports.append(MethodReport(method, delegates, delegated, outside))
    return reports


def unexplained_operators(operators: Iterable[str]) -> list[str]:
    """Return those operators of a program, as it names them, for which ``REASONS`` has no reason."""
    plain = {operator: operator.replace("::", ".").partition(".") for operator in operators}
    names = {operator: f"{space}.{name.partition('.')[0]}" for operator, (space, _, name) in plain.items()}
    return [
        operator
        for operator, name in names.items()
        if SERIALIZED.get(name, name) not in REASONS and not name.startswith(SCALARS)
    ]


def _is_scalar(node: Node) -> bool:
    return getattr(node.target, "__module__", None) in SCALAR_MODULES


def _name(node: Node) -> str:
    """Return ``namespace.operator`` without the overload. Of a functionalized call it is the operator inside."""
    target = node.args[0] if getattr(node.target, "__name__", "") == "auto_functionalized_v2" else node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(target)
    return schema.name.replace("::", ".")
