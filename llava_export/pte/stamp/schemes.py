"""Layers whose linears have different schemes: for each linear the delegate that its scheme needs.

In one template all linears of the layers have the same scheme. Where a recipe gives them several, a template is lowered
for each. Every quantized linear is a delegate of its own, so the graphs of these templates differ in those delegates
alone. Whether that is so is checked, node by node. Then the graph of one template is stamped, and each linear takes its
delegate from the template of its scheme.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch.fx import Node
from torch.fx.node import map_arg

from llava_export.pte.stamp.template import Delegate, StampError, Template, shifted

Schemes = Mapping[str, str]  # of the linears in a method's layers, by their names in the method


class SchemeDelegates:
    """The delegates of a method in each of its schemes.

    ``templates`` are those of the schemes in ``schemes``, in the order of the schemes' names. Raises ``StampError`` if
    their graphs are not the same.
    """

    def __init__(self, templates: Sequence[Template], schemes: Schemes) -> None:
        self._first = templates[0]
        self._schemes = schemes
        self._delegates = {
            scheme: {node: template.delegates[twin] for node, twin in _twins(self._first, template, schemes).items()}
            for scheme, template in zip(sorted(set(schemes.values())), templates, strict=True)
        }

    def of(self, node: Node, *, by: int) -> Delegate:
        """Return the delegate for a node of the first template whose weights are those ``by`` layers later."""
        delegate = self._first.delegates[node]
        linear = _linear(delegate, self._schemes)
        return self._delegates[self._schemes[shifted(linear, by)]][node] if linear else delegate


def _twins(first: Template, other: Template, schemes: Schemes) -> dict[Node, Node]:
    """Return the node of ``other`` for each node of ``first`` that calls a delegate.

    Raises ``StampError`` unless the graphs are the same in everything but the delegates of linears.
    """
    mine, its = ([node for node in each.program.graph.nodes if node.op != "get_attr"] for each in (first, other))
    place = {node: i for nodes in (mine, its) for i, node in enumerate(nodes)}
    same = len(mine) == len(its) and all(
        _text(node, place) == _text(twin, place) and _does_the_same(node, twin, first, other, schemes)
        for node, twin in zip(mine, its, strict=True)
    )
    if not same:
        raise StampError("linears of different schemes are not lowered to the same graph")
    return {node: its[place[node]] for node in first.delegates}


def _text(node: Node, place: Mapping[Node, int]) -> str:
    """Return what a node computes of which others, which are given by their places in the graph."""
    if node.op == "placeholder":
        return node.op
    delegate = -1  # its place: it is in no graph
    return repr((node.op, node.target, map_arg((node.args, node.kwargs), lambda value: place.get(value, delegate))))


def _does_the_same(node: Node, twin: Node, first: Template, other: Template, schemes: Schemes) -> bool:
    """Return whether two nodes stand for the same input, or call the same delegate, or that of the same linear."""
    if node in first.inputs:
        mine, its = first.inputs[node], other.inputs[twin]
        return mine.kind is its.kind and mine.target == its.target
    if node not in first.delegates or twin not in other.delegates:
        return node not in first.delegates and twin not in other.delegates
    delegates = first.delegates[node], other.delegates[twin]
    linears = {_linear(delegate, schemes) for delegate in delegates}
    payloads = {_without_keys(delegate) for delegate in delegates}
    return len(linears) == 1 and (linears != {None} or len(payloads) == 1)


def _linear(delegate: Delegate, schemes: Schemes) -> str | None:
    """Return the linear that a delegate computes, or None if it has the weights of none that has a scheme.

    Raises ``StampError`` if it computes more than that.
    """
    modules = {slot.fqn.rpartition(".")[0] for slot in delegate.slots.values()}
    if not modules & schemes.keys():
        return None
    if len(modules) > 1:
        raise StampError(f"{' and '.join(sorted(modules))} are in one delegate, and may have different schemes")
    return modules.pop()


def _without_keys(delegate: Delegate) -> bytes:
    """Return the payload of a delegate with the names of its weights in place of their keys."""
    if not delegate.slots:
        return delegate.module.processed_bytes
    names = {key.encode(): f"{slot.fqn} {slot.index}".encode() for key, slot in delegate.slots.items()}
    return re.sub(b"|".join(names), lambda key: names[key[0]], delegate.module.processed_bytes)
