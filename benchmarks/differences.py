"""How far a second measurement of the same figures is from the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llava_export.benchmark.rounds import Figure

IN_ROUNDS = ("speed", "memory")  # the figures whose names begin so are medians of several rounds


def figures(results: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Yield the name and the value of every time, speed and size that was measured."""
    for model, found in results.get("export", {}).items():
        for pipeline in [it for it in ("llava_export", "straightforward") if it in found]:
            for what in ("seconds", "peak"):
                yield f"export, {model}, {pipeline}, {what}", Figure.of([found[pipeline][what]])
    named = [("speed", model, found) for model, found in results.get("speed", {}).items()]
    for model, found in results.get("ladders", {}).items():
        named += [(f"{ladder['name']} ladder", model, ladder) for ladder in found["ladders"]]
    for part, model, found in named:
        for contender, rounds in found["rounds"].items():
            for name in rounds[0]:
                yield f"{part}, {model}, {contender}, {name}", Figure.of([values[name] for values in rounds])


def measured_here(results: Mapping[str, Any], here: Mapping[str, str]) -> dict[str, Any]:
    """Return what was measured of models on a processor of the same kind as this one.

    ``here`` is this machine, as each model's speed has the one that it was measured on.
    """

    def is_same(model: str) -> bool:
        there = results.get("speed", {}).get(model, {}).get("machine", {})
        return all(there.get(name) == here[name] for name in ("processor", "extensions"))

    return {
        part: {model: found for model, found in results.get(part, {}).items() if is_same(model)}
        for part in ("export", "speed", "ladders")
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the new median over the old one for each figure in both results, by name.

    ``overlap`` says if the ranges of their rounds overlap. It is None for a figure that was measured in one round.
    """
    old = dict(figures(before))
    return {
        name: {
            "ratio": new.median / old[name].median,
            "overlap": new.low <= old[name].high and old[name].low <= new.high if name.startswith(IN_ROUNDS) else None,
        }
        for name, new in figures(after)
        if name in old
    }
