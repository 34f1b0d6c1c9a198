"""Finds the part of a lowered graph that occurs once for every layer.

The graph cannot be cut where a layer of the model ends. Lowering fuses the end of one layer and the beginning of the
next into one delegate, and the first and the last layer with what comes before and after them. But any point within a
layer will do, if it is the same one in each layer. So we look for a parameter of layer 1 and cut the graph behind the
node that reads it. The second cut is behind the node that reads the same parameter of layer 2. The nodes between the
two cuts are the body: the rest of layer 1, and layer 2 up to the cut.

The body can be copied if what lies before it is the same, node by node and edge by edge. Then one more copy computes
what one more layer would.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node
from torch.fx.node import map_arg

Corresponds = Callable[[Node, Node], bool]


@dataclass(frozen=True)
class Repeat:
    """The part of a graph that occurs once for every layer, and what follows it.

    ``body`` are its nodes and ``after`` those behind it, in the graph's order, without the ``get_attr`` nodes of
    delegates. ``carried`` are the values that one layer passes to the next, such as the hidden state: it maps the node
    that computes such a value before the body to the node that computes it in the body, for what comes next.
    """

    body: list[Node]
    after: list[Node]
    carried: Mapping[Node, Node]


def find_repeat(graph: Graph, *, cuts: Iterable[tuple[Node, Node]], corresponds: Corresponds) -> Repeat | None:
    """Try pairs of cuts in turn. Return the first repeat found, or None if no pair encloses one.

    A cut is given as the node it lies behind. ``corresponds(earlier, later)`` is called with two nodes that have equal
    operators. It says whether ``later`` does in its layer what ``earlier`` does in the layer before.
    """
    for first, second in cuts:
        if repeat := _repeat_between(graph, first, second, corresponds):
            return repeat
    return None


def _repeat_between(graph: Graph, first: Node, second: Node, corresponds: Corresponds) -> Repeat | None:
    up_to_first, up_to_second = _upstream(first), _upstream(second)
    if first not in up_to_second or second in up_to_first:
        return None
    nodes = [node for node in graph.nodes if node.op != "get_attr"]
    body = {node: None for node in nodes if node in up_to_second and node not in up_to_first}
    after = [node for node in nodes if node not in up_to_second]
    later_of = _corresponding_nodes(first, second, corresponds)
    earlier_of = {later: earlier for earlier, later in later_of.items()}
    if not earlier_of.keys() >= body.keys():
        return None
    entering = {value: None for node in body for value in _inputs(node) if value in up_to_first}
    carried = {value: later_of[value] for value in entering if later_of.get(value) in body}
    repeat = Repeat(list(body), after, carried)
    return repeat if _can_be_copied(repeat, later_of, earlier_of) else None


def _can_be_copied(repeat: Repeat, later_of: Mapping[Node, Node], earlier_of: Mapping[Node, Node]) -> bool:
    """Return whether copies of the body compute what further layers would.

    Each edge in the body must correspond to one in the layer before. Nodes behind the body may read carried values of
    it, and no others.
    """
    body, leaving = set(repeat.body), set(repeat.carried.values())
    for node in repeat.body:
        for earlier, later in zip(_inputs(earlier_of[node]), _inputs(node), strict=True):
            expected = later_of.get(earlier) if later in body else earlier
            if later not in repeat.carried and expected is not later:
                return False
    for node in repeat.after:
        if node.op == "output":
            continue  # it lists the caches of every layer; stamping writes that list anew
        if any(value in repeat.carried or (value in body and value not in leaving) for value in _inputs(node)):
            return False
    return True


def _upstream(node: Node) -> set[Node]:
    """Return a node and all nodes that it is computed from. Of a node with several results, all results are in it."""
    found: set[Node] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
            todo += _results(node)
    return found


def _corresponding_nodes(first: Node, second: Node, corresponds: Corresponds) -> dict[Node, Node]:
    """Return which later node corresponds to which earlier node.

    Walk upstream from ``first`` and ``second`` at once, for as long as the nodes reached correspond.
    """
    pairs: dict[Node, Node] = {}
    todo = [(first, second)]
    while todo:
        earlier, later = todo.pop()
        if earlier in pairs or not (
            earlier is later or (_same_operator(earlier, later) and corresponds(earlier, later))
        ):
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
    """Return the arguments of a node with None in place of other nodes."""
    return () if node.op == "placeholder" else map_arg((node.args, node.kwargs), lambda _: None)


def _inputs(node: Node) -> list[Node]:
    return [value for value in node.all_input_nodes if value.op != "get_attr"]


def _results(node: Node) -> list[Node]:
    """Return the nodes that take the results out of a node with several, in the order of the results."""
    users = [user for user in node.users if user.target is operator.getitem]
    return sorted(users, key=lambda user: int(user.args[1]))  # type: ignore[arg-type]
