"""The plots of docs/RECIPES.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.recipes.entries import LLAMA_CPP, RECIPES
from benchmarks.recipes.tables import decoding
from llava_export.benchmark.plots import DPI, SIZE

TABLE_ONLY = ("fp32", "hqq", "minmax", "gptq")  # float has no KL, and the others would lie on those that are drawn
OURS, THEIRS = "tab:blue", "tab:orange"


def draw_all(results: Mapping[str, Any], folder: Path) -> None:
    """Draw KL against bytes, and KL against the speed of decoding."""
    measured = results["measured"]
    names = [entry.name for entry in RECIPES if entry.name not in TABLE_ONLY]
    by_size = {name: measured[name]["bytes"] / 1e6 for name in [*names, *(entry.name for entry in LLAMA_CPP)]}
    _draw(by_size, measured, folder / "recipes-bytes.png", label="MB of the language model")
    speeds = {name: decoding(measured[name], results["speed"]) for name in names}
    by_speed = {name: figure.median for name, figure in speeds.items() if figure}
    _draw(by_speed, measured, folder / "recipes-speed.png", label="decode speed, default = 1")


def _draw(places: Mapping[str, float], measured: Mapping[str, Any], path: Path, *, label: str) -> None:
    """Draw the KL of recipes at their places. Whiskers are the 95 % intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    theirs = {entry.name for entry in LLAMA_CPP}
    figure, axes = pyplot.subplots(figsize=(SIZE[0], 1.4 * SIZE[1]), layout="constrained")
    for is_theirs, color, title in ((False, OURS, "llava export"), (True, THEIRS, "llama.cpp, weights only")):
        names = [name for name in places if (name in theirs) is is_theirs]
        if not names:
            continue
        kl = [measured[name]["kl"] for name in names]
        values = [each["value"] for each in kl]
        ends = [[abs(each["value"] - (each[end] or each["value"])) for each in kl] for end in ("low", "high")]
        x = [places[name] for name in names]
        axes.errorbar(x, values, yerr=ends, fmt="o", capsize=2, linewidth=1, color=color, label=title)
        for at, value, name in zip(x, values, names, strict=True):
            is_leftmost = at == min(places.values())  # its name would lie on what is to the right
            place = {"xytext": (-5, 3), "ha": "right"} if is_leftmost else {"xytext": (5, 3)}
            axes.annotate(name, (at, value), textcoords="offset points", fontsize=7, **place)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.tick_params(which="both", labelsize=7)
    axes.margins(x=0.15)
    axes.set_xlabel(label)
    axes.set_ylabel("KL from the float model, in nats")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
