"""Plots of the figures, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from llava_export.benchmark.drafts import PUBLISHED_TOKENS_A_CALL, DraftResults, tokens_a_call
from llava_export.benchmark.ladders import Ladder
from llava_export.benchmark.profile import TOP, CallProfile, short
from llava_export.benchmark.rounds import Figure, Results
from llava_export.models.names import LM_HEAD, TEXT_DECODER
from llava_export.recipe import Recipe

STAGES = ("load", "image", "prompt", "first token")
SIZE = (9.0, 3.6)  # inches
DPI = 150


def plot_results(results: Results, path: Path, *, title: str) -> None:
    """Draw the seconds of each stage, and the decoding speed by depth. Whiskers span all rounds."""
    figure, (stages, decoding) = _subplots(2, title)
    names = list(results.rounds)
    width = 0.8 / len(names)
    for i, contender in enumerate(names):
        found = [results.figure(contender, stage) for stage in STAGES]
        places = [place + (i - (len(names) - 1) / 2) * width for place in range(len(STAGES))]
        stages.bar(places, [each.median for each in found], width, yerr=_whiskers(found), capsize=2, label=contender)
        depths = results.depths(contender)
        order = sorted(depths)
        found = [depths[depth] for depth in order]
        decoding.errorbar(
            order, [each.median for each in found], yerr=_whiskers(found), marker="o", capsize=2, label=contender
        )
    stages.set_xticks(range(len(STAGES)), STAGES)
    stages.set_ylabel("seconds")
    decoding.set_ylim(bottom=0)
    decoding.set_xlabel("positions in the cache")
    decoding.set_ylabel("tokens decoded a second")
    stages.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_profiles(profiles: Sequence[CallProfile], path: Path, *, title: str) -> None:
    """Draw the operators that take longest, in a panel for each kind of call."""
    shown = [profile for profile in profiles if len(profile.parts()) > 3]
    figure, panels = _subplots(len(shown), title, height=3.2)
    for axes, profile in zip(panels, shown, strict=True):
        parts = profile.parts()
        top = [*parts[:TOP], ("all else", sum(spent for _, spent in parts[TOP:]))]
        inside = ["tab:blue" if name in profile.delegated else "tab:orange" for name, _ in top]
        axes.barh([short(name) for name, _ in top][::-1], [spent for _, spent in top][::-1], color=inside[::-1])
        axes.set_title(profile.name, fontsize=8)
        axes.set_xlabel("ms", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.text(0.01, 0.01, "blue: inside XNNPACK's delegates, orange: outside", fontsize=7)
    _save(figure, path)


def plot_drafts(results: DraftResults, path: Path, *, title: str) -> None:
    """Draw the time of a call by its rows with its parts, and the speed by tokens a call. Whiskers span all rounds."""
    figure, (rows, speed) = _subplots(2, title)
    counts, below = list(results.parts), [0.0] * len(results.parts)
    for part in results.parts[counts[0]]:
        heights = [results.parts[count][part] for count in counts]
        rows.bar(counts, heights, bottom=below, alpha=0.5, label=f"{part}, traced")
        below = [start + height for start, height in zip(below, heights, strict=True)]
    found = list(results.rows.values())
    medians = [each.median for each in found]
    rows.errorbar(counts, medians, yerr=_whiskers(found), color="black", marker="o", capsize=2, label="not traced")
    rows.set_xticks(counts)
    rows.set_xlabel("rows of a call")
    rows.set_ylabel("ms")
    rows.legend(frameon=False, fontsize=8)
    places = [tokens_a_call(results.tokens, results.accepted[percent]) for percent in results.ratio]
    found = list(results.ratio.values())
    speed.errorbar(places, [each.median for each in found], yerr=_whiskers(found), marker="o", capsize=2)
    for i, (percent, place, each) in enumerate(zip(results.ratio, places, found, strict=True)):
        offset = (-4, 10) if i % 2 else (4, -14)  # those of bad drafts are close together
        speed.annotate(f"{percent} %", (place, each.median), offset, textcoords="offset points", fontsize=8)
    speed.axhline(1, color="gray", linewidth=0.8, label="no draft")
    published = "published for LLaVA-7B (arXiv 2404.08856)"
    speed.axvline(PUBLISHED_TOKENS_A_CALL, color="tab:green", linestyle=":", label=published)
    speed.set_ylim(bottom=0)
    speed.set_xlabel("tokens a call, with how often a guess is right")
    speed.set_ylabel("speed, of plain decoding")
    speed.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_ladders(measured: Sequence[tuple[Ladder, Results]], path: Path, *, title: str) -> None:
    """Draw a panel for each published figure: measured and published values, as multiples of the first rung's."""
    panels = [
        (ladder, name, results)
        for ladder, results in measured
        for name in ladder.compared
        if all(name in rung.published for rung in ladder.rungs)
    ]
    figure, all_axes = _subplots(len(panels), title)
    for axes, (ladder, name, results) in zip(all_axes, panels, strict=True):
        places = range(len(ladder.rungs))
        found = [results.figure(rung.name, name) for rung in ladder.rungs]
        start = found[0].median
        shares = [Figure(each.median / start, each.low / start, each.high / start) for each in found]
        published = [rung.published[name] / ladder.rungs[0].published[name] for rung in ladder.rungs]
        heights = [each.median for each in shares]
        axes.bar([place - 0.2 for place in places], heights, 0.4, yerr=_whiskers(shares), capsize=2, label="here")
        axes.bar([place + 0.2 for place in places], published, 0.4, label="published")
        axes.set_xticks(places, [fill(rung.name, 16) for rung in ladder.rungs], fontsize=6)
        axes.set_title(f"{name}, first rung = 1", fontsize=8)
    all_axes[0].legend(frameon=False, fontsize=7)
    _save(figure, path)


def plot_sensitivity(kl: Mapping[str, float], path: Path, *, recipe: Recipe, title: str) -> None:
    """Draw the divergence that each linear of a decoder causes with 4 bits. Those with 8 bits in ``recipe`` are filled.

    ``kl`` is in nats, by the linears' names in the model.
    """
    figure, (axes,) = _subplots(1, title)
    kinds: dict[str, list[tuple[int, float, bool]]] = {}
    for fqn, value in kl.items():
        has_8_bits = recipe.scheme(fqn) == "8da8w"
        if fqn == LM_HEAD:
            axes.axhline(value, color="gray", linestyle="-" if has_8_bits else ":", label="lm_head")
        else:
            layer, kind = fqn.removeprefix(f"{TEXT_DECODER}.layers.").split(".", 1)
            kinds.setdefault(kind, []).append((int(layer), value, has_8_bits))
    for kind, points in kinds.items():
        layers, values, _ = zip(*points, strict=True)
        (line,) = axes.plot(layers, values, linewidth=1, label=kind)
        for has_8_bits in (False, True):
            some = [(layer, value) for layer, value, each in points if each is has_8_bits]
            face = line.get_color() if has_8_bits else "white"
            if some:
                axes.scatter(*zip(*some, strict=True), edgecolor=line.get_color(), facecolor=face, s=18, zorder=3)
    if any(value > 0 for value in kl.values()):
        axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("KL with 4 bits, in nats")
    axes.legend(frameon=False, fontsize=8)
    figure.text(0.01, 0.01, "filled, or a solid line: 8 bits in the program", fontsize=7)
    _save(figure, path)


def _whiskers(figures: Sequence[Figure]) -> list[list[float]]:
    """Return how far the lowest and the highest round are from each median."""
    return [[each.median - each.low for each in figures], [each.high - each.median for each in figures]]


def _subplots(count: int, title: str, *, height: float = SIZE[1]) -> tuple[Any, Any]:
    """Return a figure, and ``count`` axes side by side. ``height`` is in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    size = (SIZE[0] * max(1, count / 2), height)
    figure, axes = pyplot.subplots(1, count, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(title, fontsize=10)
    return figure, axes[0]


def _save(figure: Any, path: Path) -> None:
    """Write a figure to a file and free it."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
