"""The figures of an evaluation, from the records of its items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llava_export.evaluate.intervals import Figure, mean, median, proportion, ratio, resampled
from llava_export.evaluate.records import Record
from llava_export.evaluate.scores import Metric, says_yes


@dataclass(frozen=True)
class Contest:
    """Two packages on the same items: how many only one of them has right, or scores better.

    ``p_value`` is that of McNemar's exact test: how probable it is that the items they differ in are divided at least
    as unevenly between two packages that are equally good.
    """

    first_better: int
    second_better: int
    p_value: float
    difference: Figure


def score_figures(records: Sequence[Record], metric: Metric, *, package: int = 0) -> list[Figure]:
    """Return the figures of a package's answers. Scores of yes and no have precision, recall and F1, too."""
    scores = [record.results[package].score for record in records]
    answers = [record.results[package].answer for record in records]
    figures = [score_figure(metric.title, scores, metric)]
    return figures + (yes_no_figures(records, answers) if metric.name == "yes-no" else [])


def score_figure(name: str, scores: Sequence[float], metric: Metric) -> Figure:
    """Return the mean score. Where all are 0 or 1, it is a proportion, even if the metric has others in between."""
    if metric.is_binary or {0.0, 1.0}.issuperset(scores):
        return proportion(name, sum(map(bool, scores)), len(scores))
    return mean(name, scores)


def yes_no_figures(records: Sequence[Record], answers: Sequence[str]) -> list[Figure]:
    """Return POPE's figures of answers of yes and no. "Yes" is what is looked for."""
    pairs = [(says_yes(record.expected[0]), says_yes(answer)) for record, answer in zip(records, answers, strict=True)]
    hits, said, true = (sum(map(count, pairs)) for count in (all, lambda pair: pair[1], lambda pair: pair[0]))
    return [
        proportion("precision", hits, said),
        proportion("recall", hits, true),
        resampled("F1", [(float(a), float(b)) for a, b in pairs], _f1),
        proportion("yes ratio", said, len(pairs)),
    ]


def _f1(rows: np.ndarray) -> float | None:
    both = rows.sum()
    return float(2 * rows.prod(axis=1).sum() / both) if both else None


def agreement_figures(records: Sequence[Record], *, package: int = 0) -> list[Figure]:
    """Return how a package's answers compare with the float model's. There are none where it was not asked."""
    results = [record.results[package] for record in records if record.float_answer is not None]
    if not results:
        return []
    differences = [float(it.first_difference) for it in results if it.first_difference is not None]
    agreement = ratio("token agreement", [(it.agreed, it.compared) for it in results])
    if agreement.value == 1:  # no sample of such items is any different, and Wilson's interval is at least as wide
        agreement = proportion(agreement.name, len(results), len(results))
    return [
        proportion("same answer, token by token", len(results) - len(differences), len(results)),
        agreement,
        ratio("KL of a token, nats", [(it.kl, it.compared) for it in results]),
        median("first differing token, median", differences),
    ]


def float_figure(records: Sequence[Record], metric: Metric) -> Figure | None:
    """Return the mean score of the float model, or None where it was not asked."""
    scores = [record.float_score for record in records if record.float_score is not None]
    return score_figure(metric.title, scores, metric) if scores else None


def contest(records: Sequence[Record]) -> Contest:
    """Return how two packages compare item by item."""
    pairs = [(record.results[0].score, record.results[1].score) for record in records]
    first, second = (sum(sign * (a - b) > 0 for a, b in pairs) for sign in (1, -1))
    difference = mean("difference of the mean scores", [b - a for a, b in pairs])
    return Contest(first, second, mcnemar(first, second), difference)


def mcnemar(first: int, second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for the counts of items that only one has right.

    Source: McNemar, 1947, by the binomial distribution.
    """
    count = first + second
    tail = sum(math.comb(count, k) for k in range(min(first, second) + 1))
    return min(1.0, 2 * tail / 2**count)


def by_kind(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each kind of item, by its name. There are none where items have no kinds."""
    kinds = sorted({record.kind for record in records})
    if kinds in ([], [""]):
        return {}
    return {kind: [record for record in records if record.kind == kind] for kind in kinds}


def to_dict(records: Sequence[Record], metric: Metric, names: Sequence[str]) -> dict[str, Any]:
    """Return all figures for a file of JSON. ``names`` are those of the packages."""
    found: dict[str, Any] = {"items": len(records), "packages": []}
    for i, name in enumerate(names):
        figures = score_figures(records, metric, package=i) + agreement_figures(records, package=i)
        found["packages"].append({"name": name, "figures": [asdict(figure) for figure in figures]})
    if (of_float := float_figure(records, metric)) is not None:
        found["float"] = asdict(of_float)
    if len(names) == 2:
        found["contest"] = asdict(contest(records))
    found["kinds"] = {
        kind: {
            "items": len(those),
            "scores": [sum(record.results[i].score for record in those) for i in range(len(names))],
            "float": sum(record.float_score or 0.0 for record in those) if of_float is not None else None,
        }
        for kind, those in by_kind(records).items()
    }
    return found
