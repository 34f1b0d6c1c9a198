"""The tables of docs/BENCHMARKS.md in Markdown, made of the results alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.measuring import PEER
from llava_export.benchmark.drafts import tokens_a_call
from llava_export.benchmark.ladders import Ladder
from llava_export.benchmark.profile import TOP, CallProfile, short
from llava_export.benchmark.rounds import Figure, Results, unit
from llava_export.benchmark.show import ladder_rows, with_spread


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a table. The first ``left`` columns are aligned to the left, the others to the right."""
    lines = [header, ["---"] * left + ["--:"] * (len(header) - left), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def console(commands: Iterable[str]) -> str:
    """Return a block of commands as a terminal shows them."""
    return "\n".join(["```console", *(f"$ {command}" for command in commands), "```\n"])


def export_table(export: Mapping[str, Any]) -> str:
    """Return the time and the memory of both ways to export, by model."""
    rows: list[Sequence[str]] = []
    for model, found in export.items():
        ours, plain = found["llava_export"], found.get("straightforward")
        rows.append((model, "`llava export`", f"{ours['seconds']:.0f} s", f"{ours['peak']:.2f} GiB"))
        if plain is None:
            continue
        faster, smaller = plain["seconds"] / ours["seconds"], plain["peak"] / ours["peak"]
        rows.append(("", "straightforward", f"{plain['seconds']:.0f} s", f"{plain['peak']:.2f} GiB"))
        rows.append(("", "better", f"**{faster:.1f}** times", f"**{smaller:.1f}** times"))
    return table(("", "", "time", "peak memory"), rows, left=2)


def sizes_table(export: Mapping[str, Any]) -> str:
    """Return the sizes of the exported files by model."""
    names = next(iter(export.values()))["bytes"]
    rows = [(model, *(f"{found['bytes'][name] / 1e9:.2f} GB" for name in names)) for model, found in export.items()]
    return table(("size", *(f"`{name}`" for name in names)), rows)


def better(ratio: Figure) -> str:
    """Return how many times better something is, with its range over the rounds."""
    return f"**{ratio.median:.2f}** ({ratio.low:.2f} to {ratio.high:.2f})"


def speed_table(found: Mapping[str, Any]) -> str:
    """Return the figures of all runners with one model, and how many times better ours in C++ is than the peer."""
    results = Results(found["work"], found["rounds"])
    rows = []
    for name in results.names():
        ratio = better(results.ratio("cpp", PEER, name))
        cells = [with_spread(results.figure(contender, name)) for contender in results.rounds]
        rows.append((f"{name}, {unit(name)}", *cells, ratio))
    return table(("", *results.rounds, "better"), rows)


def rows_table(found: Mapping[str, Any]) -> str:
    """Return the time of a decoder's call by its rows, as multiples of a call with one, and its parts as traced."""
    ratios = {count: f"{ratio['median']:.2f}" for count, ratio in found["rows_ratio"].items()}
    parts = [
        (f"{part}, ms", *(f"{found['parts'][count][part]:.3g}" for count in ratios)) for part in found["parts"]["1"]
    ]
    return table(("rows of a call", *ratios), [("times one row", *ratios.values()), *parts])


def drafts_table(found: Mapping[str, Any]) -> str:
    """Return the decoding speed by how often a guess is right."""
    plain = Figure(**found["plain"])
    peer = Figure(**found["peer"]).median
    rows = [("no draft", with_spread(plain), "1", f"{plain.median / peer:.2f}", "1", "", "")]
    for percent, ratio in found["ratio"].items():
        accepted, drafted = found["accepted"][percent], found["drafted"][percent]
        rows.append(
            (
                f"{percent} %",
                with_spread(Figure(**found["speed"][percent])),
                better(Figure(**ratio)),
                better(Figure(**found["times_peer"][percent])),
                f"{tokens_a_call(found['tokens'], accepted):.2f}",
                f"{accepted} of {drafted}, {accepted / drafted:.0%}",
                str(found["changed"][percent]),
            )
        )
    header = (
        "a guess is right",
        "tok/s",
        "times plain",
        f"times {PEER}",
        "tokens a call",
        "accepted",
        "changed tokens",
    )
    return table(header, rows)


def profile_table(profiles: Sequence[Mapping[str, Any]]) -> str:
    """Return the operators that take longest, in a column for each kind of call. Those outside delegates are italic."""
    columns = []
    for call in profiles:
        if call["delegated"]:
            shares = [
                f"{short(name) if name in call['delegated'] else f'*{short(name)}*'} {spent / call['total']:.1%}"
                for name, spent in _profile(call).parts()[:TOP]
            ]
            inside = f"{call['delegates'] / call['total']:.0%} in delegates"
            columns.append([call["name"], f"**{call['total']:.0f} ms**, {inside}", *shares])
    header, *rows = zip(*columns, strict=True)
    return table(header, rows)


def _profile(call: Mapping[str, Any]) -> CallProfile:
    """Return a profile from its JSON."""
    return CallProfile(call["name"], call["total"], call["delegated"], call["outside"], call["delegates"], {})


def ladder_table(ladder: Ladder, results: Results) -> str:
    """Return each rung's figures, measured and published, with their changes from the rung before."""
    rows = [
        (f"{name}, {unit(name)}: {rung}", *cells)
        for name in ladder.compared
        for rung, *cells in ladder_rows(ladder, results, name)
    ]
    return table(("", "measured", "change", "published", "change"), rows)
