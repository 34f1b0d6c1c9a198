"""The decoder's linears are named where shapes and numbers leave no doubt, and only there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from llava_export.pte.read.describe import ROLES, linear_names
from llava_export.pte.read.types import Method, Part, PteFile, TensorType
from llava_runner import contract
from tests.runner.fake_program import make_card

INT4, INT8 = "int4, groups of 128", "int8 per channel"
TIED = (contract.TEXT_DECODER, contract.TOKEN_EMBEDDING)
QKV, ATTENTION, GATE_UP, DOWN, HEAD = ROLES


def linear(rows: int, columns: int, times: int, stored_as: str = INT4) -> Part:
    """Return the part of some linears of a decoder."""
    return Part((contract.TEXT_DECODER,), "linear", (rows, columns), stored_as, "", times, 0)


# A decoder of four layers whose hidden size is 64.
LLAMA = {linear(64, 192, 4): QKV, linear(64, 64, 4): ATTENTION, linear(64, 352, 4): GATE_UP, linear(176, 64, 4): DOWN}


@pytest.mark.parametrize(
    ("key_width", "expected"),
    [
        (64, {**LLAMA, linear(64, 500, 1): HEAD}),
        # Queries in groups; a vocabulary as large as gate and up.
        (
            16,
            {
                linear(64, 96, 4): QKV,
                linear(64, 64, 4): ATTENTION,
                linear(64, 500, 5): f"{GATE_UP} and {HEAD}",
                linear(250, 64, 4): DOWN,
            },
        ),
        # Two linears of a layer have the same shape ...
        (
            64,
            {
                linear(64, 192, 8): f"{QKV} and {GATE_UP}",
                linear(64, 64, 4): ATTENTION,
                linear(96, 64, 4): DOWN,
                linear(64, 500, 1): HEAD,
            },
        ),
        # ... but are stored differently, so nobody can tell which is which.
        (
            64,
            {
                linear(64, 192, 4): None,
                linear(64, 192, 4, INT8): None,
                linear(64, 64, 4): ATTENTION,
                linear(96, 64, 4): DOWN,
                linear(64, 500, 1): HEAD,
            },
        ),
        # The head is the token embedding, too.
        (64, {**LLAMA, replace(linear(64, 500, 1), methods=TIED): f"{HEAD} and token embedding"}),
        # A linear is left over, or missing, or has another shape or number.
        (64, dict.fromkeys([*LLAMA, linear(64, 500, 1), linear(64, 7, 1)])),
        (64, dict.fromkeys(LLAMA)),
        (64, dict.fromkeys([*LLAMA, linear(64, 501, 1)])),
        (64, dict.fromkeys([*LLAMA, linear(64, 500, 2)])),
        (32, dict.fromkeys([*LLAMA, linear(64, 500, 1)])),
    ],
)
def test_linears_are_named_where_there_is_no_doubt(key_width, expected):
    caches = (TensorType("bfloat16", (1, 768, 1, key_width), "static", 0),) * 8
    decoder = Method(contract.TEXT_DECODER, (), (), Counter(), Counter(), Counter(), 0, caches, caches)
    found = PteFile(0, "ET12", 0, (decoder,), {}, tuple(expected))
    card = replace(make_card(vocab_size=500), hidden_size=64)
    assert linear_names(found, card) == {part: name for part, name in expected.items() if name}
    assert linear_names(found, None) == {}
