"""Damage done to inputs: to bytes, and to JSON documents so that they stay JSON."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

# Values that programs seldom expect, to take the place of any value of a document.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 255, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, 1e-300,
    1e308, float("nan"), float("inf"), -float("inf"), "", " ", "x", "\x00", "../x", "/etc/passwd", "~nosuch/x", "a[/b]",
    "\ud800", "\udcff", "1", "null", "é" * 50, "x" * 5000, [], [[]], [1], [None], [1, 2, 3], ["a"], [0.1, 0.2, 0.3],
    {}, {"a": 1}, {"": None}, [{}], list(range(100)),
)  # fmt: skip
ODD_BYTES = (b"\x00", b"\xff", b"\x80", b"\x7f", b"\x01", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff" * 8)


def mutated_bytes(content: bytes, generator: random.Random) -> bytes:
    """Return content with one to four places damaged: bits, bytes, numbers, pieces moved, doubled, or cut away."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        at = generator.randrange(len(data) + 1)
        kind = generator.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = generator.randrange(256)
        elif kind == 2:
            odd = generator.choice(ODD_BYTES)
            data[at : at + len(odd)] = odd
        elif kind == 3:
            number = generator.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1, len(data), generator.randrange(2**32)))
            data[at : at + 4] = number.to_bytes(4, "little")
        elif kind == 4:
            del data[at : at + generator.choice((1, 4, 16, len(data)))]
        elif kind == 5:
            data[at:at] = generator.randbytes(generator.choice((1, 4, 16)))
        elif kind == 6:
            source = generator.randrange(len(data) + 1)
            piece = bytes(data[source : source + generator.randrange(1, 64)])
            data[at : at + generator.choice((0, len(piece)))] = piece
        else:
            data[at:at] = data[at : at + 32] * generator.randrange(1, 200)
    return bytes(data)


def mutated_json(content: bytes, generator: random.Random) -> bytes:
    """Return a document with one to three of its values replaced, removed, doubled, or nested deeply."""
    try:
        return json.dumps(_with_odd_values(content, generator)).encode()
    except (OverflowError, RecursionError):  # of what this program itself can write
        return b"[" * 100_000


def _with_odd_values(content: bytes, generator: random.Random) -> Any:
    """Return what a document holds, with odd values in it."""
    document = json.loads(content)
    for _ in range(generator.choice((1, 1, 2, 3))):
        holder = [document]
        where: Any = 0
        outer: Any = holder
        while isinstance(outer[where], dict | list) and outer[where] and generator.random() < 0.9:
            outer = outer[where]
            where = generator.choice(list(outer)) if isinstance(outer, dict) else generator.randrange(len(outer))
        kind = generator.randrange(10)
        if kind < 6:
            outer[where] = copy.deepcopy(generator.choice(ODD_VALUES))
        elif kind == 6:
            del outer[where]
        elif kind == 7 and isinstance(outer, list):
            outer.extend([copy.deepcopy(outer[where])] * generator.randrange(1, 5))
        elif kind == 7:
            outer[generator.choice(("x", "", "\ud800", "type", "model_type"))] = outer[where]
        elif kind == 8 and isinstance(outer[where], int | float):
            outer[where] = outer[where] * generator.choice((-1, 2, 0.5, 1000, 10**9)) + generator.choice((0, 1, -1))
        else:
            for _ in range(generator.choice((2, 100, 900))):
                outer[where] = [outer[where]] if kind == 8 else {"a": outer[where]}
        if not holder:
            return None
        document = holder[0]
    return document


def mutated_document(content: bytes, generator: random.Random) -> bytes:
    """Return a document damaged in its values, mostly, or in its bytes."""
    return mutated_json(content, generator) if generator.random() < 0.8 else mutated_bytes(content, generator)
