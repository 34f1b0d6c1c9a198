"""Where a lowered graph repeats: the nodes that occur once for every layer but the first and the last.

Lowering fuses across layers: what ends one layer and begins the next is one delegate, and the first and the last layer
fuse with whatever is before and after them. So the graph is not cut where the modules end, but behind the node that
reads some parameter of layer 1, and behind the one that reads the same parameter of layer 2. Between the two cuts lies
the body. It repeats if it is the same again, node by node and edge by edge, as what lies before it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node
from torch.fx.node import map_arg

Alike = Callable[[Node, Node], bool]


@dataclass(frozen=True)
class Repeat:
    """``body`` and ``after`` in the graph's order, without the ``get_attr`` nodes of delegates.

    ``carried`` maps each value that a layer hands to the next, as it enters the body, to the same as it leaves it.
    """

    body: list[Node]
    after: list[Node]
    carried: Mapping[Node, Node]


def find_repeat(graph: Graph, *, cuts: Iterable[tuple[Node, Node]], alike: Alike) -> Repeat | None:
    """Try the ``cuts`` in turn; None if the graph repeats between none of them.

    ``alike(earlier, later)`` says of two nodes with equal operators whether the later is the earlier one layer on.
    """
    for first, second in cuts:
        if repeat := _repeat_between(graph, first, second, alike):
            return repeat
    return None


def _repeat_between(graph: Graph, first: Node, second: Node, alike: Alike) -> Repeat | None:
    before, through = _upstream(first), _upstream(second)
    if first not in through or second in before:
        return None
    nodes = [node for node in graph.nodes if node.op != "get_attr"]
    body = {node: None for node in nodes if node in through and node not in before}
    after = [node for node in nodes if node not in through]
    later_of = _in_step(first, second, alike)
    earlier_of = {later: earlier for earlier, later in later_of.items()}
    if not earlier_of.keys() >= body.keys():
        return None
    entering = {value: None for node in body for value in _inputs(node) if value in before}
    carried = {value: later_of[value] for value in entering if later_of.get(value) in body}
    repeat = Repeat(list(body), after, carried)
    return repeat if _holds(repeat, later_of, earlier_of) else None


def _holds(repeat: Repeat, later_of: Mapping[Node, Node], earlier_of: Mapping[Node, Node]) -> bool:
    """Every edge of the body is one of the layer before it, and only carried values cross to what comes after."""
    body, leaving = set(repeat.body), set(repeat.carried.values())
    for node in repeat.body:
        for earlier, later in zip(_inputs(earlier_of[node]), _inputs(node), strict=True):
            expected = later_of.get(earlier) if later in body else earlier
            if later not in repeat.carried and expected is not later:
                return False
    for node in repeat.after:
        if node.op == "output":
            continue  # a body's caches are outputs of the program, each its own
        if any(value in repeat.carried or (value in body and value not in leaving) for value in _inputs(node)):
            return False
    return True


def _upstream(node: Node) -> set[Node]:
    """All that a node is computed from and itself; of a node with several results always all of them."""
    found: set[Node] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
            todo += _results(node)
    return found


def _in_step(first: Node, second: Node, alike: Alike) -> dict[Node, Node]:
    """Walk upstream from two nodes at once for as long as they are alike; the pairs met, earlier node first."""
    pairs: dict[Node, Node] = {}
    todo = [(first, second)]
    while todo:
        earlier, later = todo.pop()
        if earlier in pairs or not (earlier is later or (_same_operator(earlier, later) and alike(earlier, later))):
            continue
        pairs[earlier] = later
        if earlier is not later:
            todo += zip(_inputs(earlier), _inputs(later), strict=True)
            todo += zip(_results(earlier), _results(later), strict=False)
    return pairs


def _same_operator(earlier: Node, later: Node) -> bool:
    return (
        earlier.op == later.op
        and (earlier.op == "placeholder" or earlier.target == later.target)
        and len(_inputs(earlier)) == len(_inputs(later))
        and _without_nodes(earlier) == _without_nodes(later)
    )


def _without_nodes(node: Node) -> tuple:
    return () if node.op == "placeholder" else map_arg((node.args, node.kwargs), lambda _: None)


def _inputs(node: Node) -> list[Node]:
    return [value for value in node.all_input_nodes if value.op != "get_attr"]


def _results(node: Node) -> list[Node]:
    """Of a node with several, in their order."""
    users = [user for user in node.users if user.target is operator.getitem]
    return sorted(users, key=lambda user: int(user.args[1]))  # type: ignore[arg-type]
