"""Finding what repeats, on graphs small enough to see."""

from __future__ import annotations

import pytest
import torch
from torch.fx import Graph, Node

from llava_export.pte.stamp.repeat import Repeat, find_repeat


def chain() -> tuple[Graph, list[Node]]:
    """Three layers of ``x + weight * x`` between a sigmoid and a relu, and the nodes that read the weights."""
    graph = Graph()
    x = graph.call_function(torch.sigmoid, (graph.placeholder("x"),))
    readers = []
    for i in range(3):
        weight = graph.placeholder(f"weight_{i}")
        readers.append(graph.call_function(torch.mul, (weight, x)))
        x = graph.call_function(torch.add, (x, readers[-1]))
    graph.output(graph.call_function(torch.relu, (x,)))
    return graph, readers


def repeat_of(graph: Graph, readers: list[Node], *, alike=lambda earlier, later: True) -> Repeat | None:
    return find_repeat(graph, cuts=[(readers[1], readers[2])], alike=alike)


def test_the_body_is_one_layer_and_carries_what_layers_hand_on():
    graph, readers = chain()
    repeat = repeat_of(graph, readers)
    assert [node.name for node in repeat.body] == ["add_1", "weight_2", "mul_2"]
    assert {(entering.name, leaving.name) for entering, leaving in repeat.carried.items()} == {
        ("mul_1", "mul_2"),
        ("add", "add_1"),
    }
    assert [node.name for node in repeat.after] == ["add_2", "relu", "output"]


def test_nodes_that_differ_do_not_repeat():
    graph, readers = chain()
    assert repeat_of(graph, readers, alike=lambda earlier, later: earlier.target is not torch.add) is None


@pytest.mark.parametrize("reverse", [False, True])
def test_cuts_that_enclose_nothing_are_none(reverse):
    graph, readers = chain()
    first, second = (readers[2], readers[1]) if reverse else (readers[1], readers[1])
    assert find_repeat(graph, cuts=[(first, second)], alike=lambda earlier, later: True) is None


def test_a_value_of_one_layer_that_is_read_at_the_end_does_not_repeat():
    graph, readers = chain()
    output = next(node for node in graph.nodes if node.target is torch.relu)
    with graph.inserting_before(output):
        output.replace_input_with(output.args[0], graph.call_function(torch.add, (output.args[0], readers[1])))
    assert repeat_of(graph, readers) is None
