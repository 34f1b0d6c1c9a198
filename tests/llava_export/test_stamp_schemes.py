"""Delegates by scheme, on graphs that are small enough to see."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.fx import Graph

from llava_export.pte.stamp.schemes import SchemeDelegates
from llava_export.pte.stamp.template import Delegate, Slot, StampError, Template

SCHEMES = {f"layers.{i}.{name}": "8da4w" for i in range(6) for name in ("fc1", "fc2")} | {"layers.4.fc1": "8da8w"}


def template(
    scheme: str,
    *,
    between: Callable[..., Any] = torch.relu,
    norm: bytes = b"norm",
    reads: str = "layers.1.fc1",
    with_other: str = "",
) -> Template:
    """Return a template whose graph is a norm, a linear and another operator. Each is a delegate but the last."""
    graph = Graph()
    x = graph.placeholder("x")
    calls = [graph.call_function(torch.sigmoid, (x,))]
    calls.append(graph.call_function(torch.tanh, (calls[0],)))
    graph.output(graph.call_function(between, (calls[1],)))
    slots = {f"{scheme}-0": Slot(f"{reads}.weight", 0), f"{scheme}-1": Slot(f"{reads}.weight", 1)}
    if with_other:
        slots[f"{scheme}-2"] = Slot(f"{with_other}.weight", 0)
    delegates = {
        calls[0]: delegate(norm + f"key-{scheme}".encode(), {f"key-{scheme}": Slot("layers.1.norm.weight", 0)}),
        calls[1]: delegate(scheme.encode(), slots),
    }
    return Template(
        program=cast(Any, SimpleNamespace(graph=graph)), inputs={}, constants={}, delegates=delegates, repeat=None
    )


def delegate(payload: bytes, slots: dict[str, Slot]) -> Delegate:
    """Return a delegate with a payload."""
    return Delegate(cast(Any, SimpleNamespace(processed_bytes=payload)), slots)


def test_each_linear_takes_the_delegate_of_its_scheme():
    four, eight = template("8da4w"), template("8da8w")
    delegates = SchemeDelegates([four, eight], SCHEMES)
    norm, linear = four.delegates
    payloads = [delegates.of(linear, by=by).module.processed_bytes for by in range(5)]
    assert payloads == [b"8da4w", b"8da4w", b"8da4w", b"8da8w", b"8da4w"]  # the template's own is layer 1
    assert {delegates.of(norm, by=by).module.processed_bytes for by in range(5)} == {b"normkey-8da4w"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"between": torch.abs}, "not lowered to the same graph"),
        ({"norm": b"another"}, "not lowered to the same graph"),
        ({"reads": "layers.1.fc2"}, "not lowered to the same graph"),
        ({"with_other": "layers.1.norm"}, "in one delegate"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_templates_that_differ_in_more_than_their_linears_cannot_be_stamped(changes, message):
    with pytest.raises(StampError, match=message):
        SchemeDelegates([template("8da4w"), template("8da8w", **changes)], SCHEMES)
