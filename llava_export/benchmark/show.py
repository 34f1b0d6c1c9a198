"""Tables of the figures for terminals of 60 columns and more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from llava_export.benchmark.drafts import DraftResults
from llava_export.benchmark.ladders import Ladder
from llava_export.benchmark.profile import TOP, CallProfile, short
from llava_export.benchmark.rounds import Figure, Results, Work, unit


def machine_lines(machine: Mapping[str, str]) -> str:
    """Return lines about the machine that ``rounds.machine`` describes."""
    return "\n".join(
        [
            f"{machine['processor']}, {machine['memory']}",
            machine["extensions"],
            f"{machine['system']}, ExecuTorch {machine['executorch']}",
        ]
    )


def work_line(name: str, work: Work) -> str:
    """Return a line about the work of the rounds of ``name``."""
    depths = " and ".join(map(str, work.depths))
    return (
        f"{name}: an image, {work.prompt_tokens} positions of prompt, then {work.decode_tokens} tokens "
        f"at depth {depths}; {work.threads} threads"
    )


def results_table(results: Results, *, peer: str | None = None) -> Table:
    """Return a table with a column for each contender.

    With a peer, a last column says how many times better the first contender is than the peer, round by round.
    """
    table = _table("")
    for contender in results.rounds:
        table.add_column(contender, justify="right", no_wrap=True)
    first = next(iter(results.rounds))
    if peer:
        table.add_column(f"{first} better", justify="right", no_wrap=True)
    for name in results.names():
        cells = [with_spread(results.figure(contender, name)) for contender in results.rounds]
        if peer:
            ratio = results.ratio(first, peer, name)
            cells.append(f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})")
        table.add_row(f"{name}, {unit(name)}", *cells)
    return table


def profile_table(profile: CallProfile) -> Table:
    """Return a table of the operators that take longest. It says which of them run in XNNPACK's delegates."""
    inside = profile.delegates / profile.total
    table = _table(profile.name)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    parts = profile.parts()
    for name, spent in parts[:TOP]:
        where = "delegate" if name in profile.delegated else "outside"
        table.add_row(short(name), f"{spent:.2f}", f"{spent / profile.total:.1%}", where)
    if rest := sum(spent for _, spent in parts[TOP:]):
        table.add_row("all else", f"{rest:.2f}", f"{rest / profile.total:.1%}", "")
    table.add_row("total", f"{profile.total:.2f}", "", f"{inside:.0%} in delegates", style="bold")
    return table


def rows_table(results: DraftResults) -> Table:
    """Return a table of the time of a decoder's call by its rows, and of its parts where operators are traced."""
    table = _table("rows of a call")
    for heading in ("ms", "times one row", *(f"{part}, ms" for part in results.parts[1])):
        table.add_column(heading, justify="right", no_wrap=True)
    for count, found in results.rows.items():
        parts = [f"{ms:.3g}" for ms in results.parts[count].values()]
        table.add_row(str(count), with_spread(found), f"{results.rows_ratio[count].median:.2f}", *parts)
    return table


def drafts_table(results: DraftResults) -> Table:
    """Return a table of the decoding speed by the percentage with which each guess is right."""
    table = _table("a guess is right")
    for heading in ("tok/s", "times plain", *(["times peer"] if results.peer else []), "accepted", "changed"):
        table.add_column(heading, justify="right", no_wrap=True)
    against = [f"{results.plain.median / results.peer.median:.2f}"] if results.peer else []
    table.add_row("no draft", with_spread(results.plain), "1", *against, "", "")
    for percent, found in results.speed.items():
        ratio = results.ratio[percent]
        table.add_row(
            f"{percent} %",
            with_spread(found),
            f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            *([f"{results.times_peer[percent].median:.2f}"] if results.peer else []),
            f"{results.accepted[percent]} of {results.drafted[percent]}",
            f"{results.changed[percent]} of {results.tokens}",
        )
    return table


def ladder_table(ladder: Ladder, results: Results) -> Table:
    """Return a table of each rung's figures, measured and published, with their changes from the rung before."""
    table = _table(ladder.name)
    for heading in ("measured", "change", "published", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in ladder.compared:
        table.add_row(f"{name}, {unit(name)}", style="bold")
        for rung, *cells in ladder_rows(ladder, results, name):
            table.add_row(f"  {rung}", *cells)
    return table


def ladder_rows(ladder: Ladder, results: Results, name: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield a row for each rung: its name, then one figure as measured, its change, as published, and that change.

    Changes are from the rung before.
    """
    before: tuple[float, float | None] | None = None
    for rung in ladder.rungs:
        measured, published = results.figure(rung.name, name), rung.published.get(name)
        yield (
            rung.name,
            with_spread(measured),
            change(measured.median, before and before[0]),
            f"{published:g}" if published else "",
            change(published, before and before[1]),
        )
        before = measured.median, published


def with_spread(figure: Figure) -> str:
    """Return the median with three digits, and how far the farthest round lies from it, in percent."""
    spread = max(figure.high - figure.median, figure.median - figure.low) / figure.median if figure.median else 0.0
    return f"{three_digits(figure.median)} ±{spread:.0%}"


def three_digits(value: float) -> str:
    """Return a number with three digits, or with more where it has more before the point."""
    digits = max(0, 3 - len(f"{value:.0f}".lstrip("0")))
    return f"{value:.{digits}f}"


def change(value: float | None, before: float | None) -> str:
    """Return the change from ``before`` in percent, or "" if one of both is missing."""
    return f"{value / before - 1:+.0%}" if value and before else ""


def _table(first: str) -> Table:
    """Return an empty table without lines. ``first`` heads its first column, which names the rows."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    return table
