"""What ``llava evaluate`` prints: figures with their intervals, scores by kind of item, and how two packages differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from llava_export.cli.terminal import plain_table
from llava_export.evaluate.figures import (
    agreement_figures,
    by_kind,
    contest,
    float_figure,
    score_figures,
)
from llava_export.evaluate.intervals import Figure

if TYPE_CHECKING:
    from llava_export.evaluate.asking import Job
    from llava_export.evaluate.datasets import Dataset
    from llava_export.evaluate.records import Record

NAMED = 10  # images that cannot be read
IN_TOKENS, IN_NATS = "token, median", "nats"


def print_skipped(console: Console, skipped: Mapping[str, str]) -> None:
    """Print how many images cannot be read, and the first of them with the reason."""
    if not skipped:
        return
    console.print(f"{len(skipped)} of the images cannot be read, and their items are skipped:", style="yellow")
    for reason in list(skipped.values())[:NAMED]:
        console.print(f"  {reason}", style="yellow", soft_wrap=True)
    if len(skipped) > NAMED:
        console.print(f"  ... and {len(skipped) - NAMED} more", style="yellow")


def print_evaluation(console: Console, records: Sequence[Record], dataset: Dataset, job: Job) -> None:
    """Print all figures of an evaluation."""
    metric = dataset.metric
    names = [str(program) for program in job.programs]
    console.print(f"{dataset.name}, layout {dataset.layout}: {len(records)} items", soft_wrap=True)
    for i, name in enumerate(names):
        console.print(f"\n{name}", style="bold", soft_wrap=True)
        print_figures(console, score_figures(records, metric, package=i) + agreement_figures(records, package=i))
    if (of_float := float_figure(records, metric)) is not None:
        console.print(f"\n{job.against} in float", style="bold", soft_wrap=True)
        print_figures(console, [of_float])
    print_kinds(console, records, names, has_float=of_float is not None)
    if len(names) == 2:
        print_contest(console, records, names)


def print_figures(console: Console, figures: Sequence[Figure]) -> None:
    """Print a table with a row for each figure."""
    table = plain_table("", "value", "95 %", "by", "of", right=("value", "95 %", "of"))
    for it in figures:
        low, high = shown(it.name, it.low), shown(it.name, it.high)
        interval = f"{low} to {high}" if it.low is not None else ""
        table.add_row(it.name, shown(it.name, it.value), interval, it.method, str(it.count))
    console.print(table)


def shown(name: str, value: float | None) -> str:
    """Return a figure's value as it is printed, in the unit that its name says."""
    if value is None:
        return "none"
    if name.endswith(IN_NATS):
        return f"{value:.5f}"
    return f"{value:g}" if name.endswith(IN_TOKENS) else f"{value:.1%}"


def print_kinds(console: Console, records: Sequence[Record], names: Sequence[str], *, has_float: bool) -> None:
    """Print the mean score of each kind of item, where there are kinds."""
    kinds = by_kind(records)
    if not kinds:
        return
    columns = [*(["first", "second"] if len(names) == 2 else ["score"]), *(["float"] if has_float else [])]
    table = plain_table("kind", "items", *columns, right=("items", *columns))
    for kind, those in kinds.items():
        totals = [sum(record.results[i].score for record in those) for i in range(len(names))]
        totals += [sum(record.float_score or 0.0 for record in those)] if has_float else []
        table.add_row(kind or "none", str(len(those)), *(f"{total / len(those):.1%}" for total in totals))
    console.print()
    console.print(table)


def print_contest(console: Console, records: Sequence[Record], names: Sequence[str]) -> None:
    """Print how two packages differ item by item."""
    found = contest(records)
    console.print("\nitem by item", style="bold")
    table = plain_table("better in", "items", right=("items",))
    table.add_row(f"{names[0]} alone", str(found.first_better))
    table.add_row(f"{names[1]} alone", str(found.second_better))
    console.print(table)
    it = found.difference
    if it.value is not None and it.low is not None and it.high is not None:
        console.print(
            f"the second's mean score less the first's: {100 * it.value:+.1f} points, 95 % {100 * it.low:+.1f} to "
            f"{100 * it.high:+.1f} ({it.method})",
            soft_wrap=True,
        )
    console.print(f"McNemar's exact test: p = {found.p_value:.3g}", soft_wrap=True)
