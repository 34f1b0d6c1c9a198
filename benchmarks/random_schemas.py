"""Random JSON schemas of five kinds. What they describe is small, so that random tokens come to its end, too."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
WORDS = ("color", "shape", "count", "x", "a b", 'quoted "name"', "größe", "色", "emoji 🙂", "back\\slash", "new\nline")
VALUES: tuple[Any, ...] = (*WORDS, 0, -1.5, 1e20, True, None, [], ["a", 1], {}, {"a": {"b": None}})
PATTERNS = (
    "^[a-z]{2,6}$",
    "^(red|green|blue) (circle|square)$",
    r"^\d{3}-\d{4}$",
    "[0-9]{2}$",
    r"^#[0-9a-fA-F]{6}$",
    r"^\w{1,9}@\w{1,9}\.(com|org)$",
)
FORMATS = ("date-time", "ipv4", "ipv6", "uuid", "duration")


def random_schema(kind: str, *, seed: int) -> Schema:
    """Return a schema of one of the ``KINDS``. The same seed gives the same one."""
    return KINDS[kind](random.Random(f"{kind} {seed}"))


def scalar(choose: random.Random) -> Schema:
    """Return a schema of a text, a number, a truth value, or null."""
    least = choose.randint(-1000, 1000)
    return choose.choice(
        (
            {"type": "string", "maxLength": choose.randint(0, 12)},
            {"type": "integer", "minimum": least, "maximum": least + choose.choice((0, 1, 9, 100, 10**6))},
            {"type": "boolean"},
            {"type": ["boolean", "null"], "description": "whether it is known"},
        )
    )


def object_of(choose: random.Random, property_of: Callable[[random.Random], Schema]) -> Schema:
    """Return a schema of an object that has some properties, a part of them always."""
    names = choose.sample(WORDS, choose.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: property_of(choose) for name in names},
        "required": choose.sample(names, choose.randint(0, len(names))),
        "additionalProperties": False,
    }


def flat(choose: random.Random) -> Schema:
    """Return a schema of an object of scalars."""
    return object_of(choose, scalar)


def nested(choose: random.Random) -> Schema:
    """Return a schema of objects in objects; some are defined apart."""
    inner = object_of(choose, scalar)
    middle = object_of(choose, lambda choose: choose.choice((scalar(choose), inner, {"$ref": "#/$defs/inner"})))
    outer = object_of(choose, lambda choose: choose.choice((scalar(choose), middle)))
    return {"$defs": {"inner": inner}, **outer}


def array(choose: random.Random) -> Schema:
    """Return a schema of a list whose length has bounds, or of a tuple."""
    least = choose.randint(0, 4)
    if choose.random() < 0.3:
        items = [scalar(choose) for _ in range(choose.randint(1, 4))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": choose.randint(0, len(items))}
    item = choose.choice((scalar, flat, lambda choose: {"type": "array", "items": scalar(choose), "maxItems": 3}))
    return {"type": "array", "items": item(choose), "minItems": least, "maxItems": least + choose.randint(0, 4)}


def choice(choose: random.Random) -> Schema:
    """Return a schema of an object whose properties are of several kinds, or of given values."""

    def chosen(choose: random.Random) -> Schema:
        return choose.choice(
            (
                {"const": choose.choice(VALUES)},
                {"enum": choose.sample(VALUES, choose.randint(1, 6))},
                {"anyOf": [scalar(choose), flat(choose), {"const": choose.choice(VALUES)}]},
                {"anyOf": [array(choose), {"type": "null"}]},
                {"oneOf": [{"type": "boolean"}, {"type": "string", "maxLength": 5}, {"type": "null"}]},
            )
        )

    return object_of(choose, chosen)


def text(choose: random.Random) -> Schema:
    """Return a schema of an object of texts with patterns, formats and lengths, and of numbers with bounds."""

    def bounded(choose: random.Random) -> Schema:
        least = round(choose.uniform(-100, 100), choose.randint(0, 3))
        shortest = choose.randint(0, 6)
        return choose.choice(
            (
                {"type": "string", "pattern": choose.choice(PATTERNS), "maxLength": 30},
                {"type": "string", "format": choose.choice(FORMATS)},
                {"type": "string", "minLength": shortest, "maxLength": shortest + choose.randint(0, 6)},
                {"type": "number", "minimum": least, "maximum": least + choose.choice((0, 0.5, 100))},
                {"type": "integer", "exclusiveMinimum": int(least), "exclusiveMaximum": int(least) + 50},
                {"type": "integer", "multipleOf": choose.choice((2, 5, 7, 10)), "minimum": 0, "maximum": 1000},
            )
        )

    return object_of(choose, bounded)


KINDS: dict[str, Callable[[random.Random], Schema]] = {
    "flat": flat,
    "nested": nested,
    "array": array,
    "choice": choice,
    "text": text,
}
