"""Tables for a terminal, 60 columns and wider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from llava_export.benchmark.ladders import Ladder
from llava_export.benchmark.profile import TOP, CallProfile, short
from llava_export.benchmark.rounds import Figure, Results, Work, unit


def machine_lines(machine: Mapping[str, str]) -> str:
    return "\n".join(
        [
            f"{machine['processor']}, {machine['memory']}",
            machine["extensions"],
            f"{machine['system']}, ExecuTorch {machine['executorch']}",
        ]
    )


def work_line(name: str, work: Work) -> str:
    depths = " and ".join(map(str, work.depths))
    return (
        f"{name}: an image, {work.prompt_tokens} positions of prompt, then {work.decode_tokens} tokens "
        f"at depth {depths}; {work.threads} threads"
    )


def results_table(results: Results, *, peer: str | None = None) -> Table:
    """A column for each contender; with a peer also how many times better the first one is, round by round."""
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
    """The operators that take longest; blue ones run inside XNNPACK's delegates."""
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


def ladder_table(ladder: Ladder, results: Results) -> Table:
    """Each rung's figures; each one's change from the rung before, and the published change beside it."""
    table = _table(ladder.name)
    for heading in ("measured", "change", "published", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in ladder.compared:
        table.add_row(f"{name}, {unit(name)}", style="bold")
        for rung, *cells in ladder_rows(ladder, results, name):
            table.add_row(f"  {rung}", *cells)
    return table


def ladder_rows(ladder: Ladder, results: Results, name: str) -> Iterator[tuple[str, str, str, str, str]]:
    """Of one figure, each rung's name, what was measured and published, and both changes from the rung before."""
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
    """The median with three digits, and how far, in percent of it, rounds lie from it at most."""
    digits = max(0, 2 - len(f"{figure.median:.0f}".lstrip("0")) + 1)
    spread = max(figure.high - figure.median, figure.median - figure.low) / figure.median if figure.median else 0.0
    return f"{figure.median:.{digits}f} ±{spread:.0%}"


def change(value: float | None, before: float | None) -> str:
    return f"{value / before - 1:+.0%}" if value and before else ""


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    return table
