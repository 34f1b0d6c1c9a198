"""The tables of docs/RECIPES.md in Markdown, made of the results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.page_tables import table
from benchmarks.recipes.entries import BUDGET, DEFAULT, ENTRIES, Entry
from llava_export.benchmark.rounds import Figure, Results, unit
from llava_export.benchmark.show import with_spread
from llava_export.recipe import SCHEME_BITS

DECODE = "decode at 0"


def recipes_table(results: Mapping[str, Any]) -> str:
    """Return what each recipe and each of llama.cpp's types takes, and how far it is from the float model."""
    rows = []
    for entry in ENTRIES.values():
        found = results["measured"][entry.name]
        figure = decoding(found, results["speed"]) if isinstance(entry, Entry) else None
        rows.append(
            (
                entry.name,
                flags_of(entry) if isinstance(entry, Entry) else f"`llava gguf --quantization {entry.name}`",
                f"{found['bytes'] / 1e6:.1f} MB",
                f"{found['bits']:.2f}",
                f"{found['perplexity']['value']:.1f}",
                with_interval(found["kl"], ".3f"),
                with_interval(found["top1"], ".0%"),
                f"{figure.median:.2f}" if figure else "",
            )
        )
    header = ("", "`llava export` with", "size", "bits", "perplexity", "KL", "same top-1", "decode speed")
    return table(header, rows, left=2)


def flags_of(entry: Entry) -> str:
    """Return the flags of an entry as Markdown."""
    flags = f"`{entry.flags}`" if entry.flags else ""
    budget = f"`--budget`, {BUDGET - 1:.0%} above the default's bytes" if entry.has_budget else ""
    return ", ".join(filter(None, (flags, budget)))


def with_interval(estimate: Mapping[str, float | None], form: str) -> str:
    """Return a figure and its interval, if it has one."""
    low, high = estimate["low"], estimate["high"]
    interval = "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
    return f"{estimate['value']:{form}}{interval}"


def decoding(found: Mapping[str, Any], speed: Mapping[str, Any]) -> Figure | None:
    """Return the decoding speed of a measured recipe, as a multiple of the default's, round by round.

    It is that of the timed recipe whose programs are computed in the same way, or None if there is none.
    """
    rounds = Results(speed["work"], speed["rounds"])
    for name, recipe in speed["recipes"].items():
        if _computed_as(recipe) == _computed_as(found["recipe"]):
            return rounds.ratio(name, DEFAULT.name, DECODE)
    return None


def _computed_as(recipe: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides how fast a program of a recipe decodes."""
    has_groups = any(SCHEME_BITS[recipe[part]] == 4 for part in ("text", "head"))
    group_size = recipe["group_size"] if has_groups else None
    return recipe["text"], recipe["head"], group_size, recipe["kv_cache"], bool(recipe.get("exceptions"))


def speed_table(speed: Mapping[str, Any]) -> str:
    """Return the speeds of the timed recipes, and their decoding as a multiple of the default's."""
    rounds = Results(speed["work"], speed["rounds"])
    names = [name for name in rounds.names() if name.startswith(("prefill", "decode"))]
    rows = []
    for contender in rounds.rounds:
        ratio = rounds.ratio(contender, DEFAULT.name, DECODE)
        cells = [with_spread(rounds.figure(contender, name)) for name in names]
        rows.append((contender, *cells, f"**{ratio.median:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})"))
    return table(("", *(f"{name}, {unit(name)}" for name in names), f"{DECODE}, default = 1"), rows)


def scenes_table(scenes: Sequence[Mapping[str, Any]]) -> str:
    """Return each recipe's accuracy and KL on hard scenes, with two columns for each model."""
    models = list(dict.fromkeys(row["model"] for row in scenes))
    found = {(row["recipe"], row["model"]): row for row in scenes}
    rows = []
    for recipe in dict.fromkeys(row["recipe"] for row in scenes):
        cells: list[str] = []
        for model in models:
            row = found.get((recipe, model))
            cells += [_accuracy(row), f"{row['kl']:.4f}"] if row else ["", ""]
        rows.append((recipe, *cells))
    return table(("", *(title for model in models for title in (model, "KL"))), rows)


def _accuracy(row: Mapping[str, Any]) -> str:
    estimate = {"value": row["accuracy"], "low": row["accuracy_low"], "high": row["accuracy_high"]}
    return with_interval(estimate, ".1%")
