"""``find_repeat`` on small graphs of three layers."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, Node

from llava_export.pte.stamp.repeat import Corresponds, Repeat, find_repeat


def chain() -> tuple[Graph, list[Node]]:
    """Return a graph and the nodes in it that read weights.

    The graph has three layers of ``x + weight * x``, between a sigmoid and a relu.
    """
    graph = Graph()
    x = graph.call_function(torch.sigmoid, (graph.placeholder("x"),))
    readers = []
    for i in range(3):
        weight = graph.placeholder(f"weight_{i}")
        readers.append(graph.call_function(torch.mul, (weight, x)))
        x = graph.call_function(torch.add, (x, readers[-1]))
    graph.output(graph.call_function(torch.relu, (x,)))
    return graph, readers


def always(earlier: Node, later: Node) -> bool:
    """Return that two nodes correspond."""
    return True


def repeat_of(graph: Graph, readers: list[Node], *, corresponds: Corresponds = always) -> Repeat | None:
    """Return what repeats between the readers of layers 1 and 2."""
    return find_repeat(graph, cuts=[(readers[1], readers[2])], corresponds=corresponds)


def test_body_is_one_layer_and_carries_what_layers_pass_on():
    graph, readers = chain()
    repeat = repeat_of(graph, readers)
    assert repeat is not None
    assert [node.name for node in repeat.body] == ["add_1", "weight_2", "mul_2"]
    assert {(entering.name, leaving.name) for entering, leaving in repeat.carried.items()} == {
        ("mul_1", "mul_2"),
        ("add", "add_1"),
    }
    assert [node.name for node in repeat.after] == ["add_2", "relu", "output"]


def test_nodes_that_do_not_correspond_do_not_repeat():
    graph, readers = chain()
    assert repeat_of(graph, readers, corresponds=lambda earlier, later: earlier.target is not torch.add) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_cuts_that_enclose_no_nodes_give_no_repeat(reverse):
    graph, readers = chain()
    first, second = (readers[2], readers[1]) if reverse else (readers[1], readers[1])
    assert find_repeat(graph, cuts=[(first, second)], corresponds=always) is None


def test_layer_whose_value_is_read_after_all_layers_does_not_repeat():
    graph, readers = chain()
    output = next(node for node in graph.nodes if node.target is torch.relu)
    with graph.inserting_before(output):
        output.replace_input_with(output.args[0], graph.call_function(torch.add, (output.args[0], readers[1])))
    assert repeat_of(graph, readers) is None
