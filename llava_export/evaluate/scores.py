"""The score of an answer, from 0 to 1, by each metric."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llava_export.evaluate.normal import normal

ANLS_THRESHOLD = 0.5
MOST_COMPARED = 1000  # characters of an answer; no published one is as long
LEAST_ANSWERS = 4  # with fewer, three others never agree


@dataclass(frozen=True)
class Metric:
    """A way to score answers. ``title`` names the mean score, and ``is_binary`` says that scores are 0 or 1.

    ``refuses`` returns in words why given answers cannot be scored so, or "".
    """

    name: str
    title: str
    score: Callable[[str, Sequence[str]], float]
    is_binary: bool = True
    refuses: Callable[[Sequence[str]], str] = lambda answers: ""


def exact(answer: str, answers: Sequence[str]) -> float:
    """Return whether an answer is one of those given, but for spaces around it."""
    return float(answer.strip() in map(str.strip, answers))


def caseless(answer: str, answers: Sequence[str]) -> float:
    """Return whether an answer is one of those given, but for case, spaces, and a period at its end."""
    return float(_folded(answer) in map(_folded, answers))


def vqa(answer: str, answers: Sequence[str]) -> float:
    """Return the VQA accuracy: with one person left out after the other, the mean of ``min(agreeing / 3, 1)``.

    Source: Antol et al., "VQA: Visual Question Answering", 2015, with the evaluation's rule for all 10 choose 9 sets.
    """
    same = [normal(given) == normal(answer) for given in answers]
    return sum(min((sum(same) - left_out) / 3, 1.0) for left_out in same) / len(same)


def says_yes(answer: str) -> bool:
    """Return whether an answer is read as yes: as POPE does, if its first sentence has neither "no" nor "not"."""
    words = re.findall(r"[\w']+", answer.partition(".")[0].lower())
    return not {"no", "not"} & set(words)


def yes_no(answer: str, answers: Sequence[str]) -> float:
    """Return whether an answer says yes or no as the one that is given. Source: Li et al., POPE, 2023."""
    return float(says_yes(answer) == says_yes(answers[0]))


def letter(answer: str, answers: Sequence[str]) -> float:
    """Return whether an answer is the letter of the right choice: "B", "B.", "(B) ..." or "The answer is B."."""
    found = re.match(r"\(?([A-Z])(?:[).:]|$)", answer.strip()) or re.search(r"answer is \(?([A-Z])\b", answer)
    return float(found is not None and found[1] == answers[0].strip())


def anls(answer: str, answers: Sequence[str]) -> float:
    """Return the normalized Levenshtein similarity to the nearest of the answers, or 0 where it is below 0.5.

    Case, and spaces beyond one, do not count. Source: Biten et al., "Scene Text Visual Question Answering", 2019, with
    the rule of DocVQA's evaluation.
    """
    best = max(_similarity(_spaced(answer), _spaced(given)) for given in answers)
    return best if best >= ANLS_THRESHOLD else 0.0


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    if longest == 0:
        return 1.0
    if min(len(a), len(b)) < longest * ANLS_THRESHOLD or longest > MOST_COMPARED:  # too many insertions in any case
        return float(a == b)
    return 1.0 - _distance(a, b) / longest


def _distance(a: str, b: str) -> int:
    """Return the number of characters to insert, delete or replace that turn a text into another (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, of_a in enumerate(a, start=1):
        above_left, row[0] = row[0], i
        for j, of_b in enumerate(b, start=1):
            above_left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above_left + (of_a != of_b))
    return row[-1]


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _folded(text: str) -> str:
    return _spaced(text).rstrip(".").rstrip()


def _too_few(answers: Sequence[str]) -> str:
    fewest = f"it takes the answers of {LEAST_ANSWERS} people or more, ten as published"
    return f"{fewest}, and there are {len(answers)}" if len(answers) < LEAST_ANSWERS else ""


def _not_yes_or_no(answers: Sequence[str]) -> str:
    return _several(answers) or ("" if normal(answers[0]) in ("yes", "no") else f"{_its(answers)}, not yes or no")


def _no_letter(answers: Sequence[str]) -> str:
    return _several(answers) or ("" if re.fullmatch("[A-Z]", answers[0].strip()) else f"{_its(answers)}, not a letter")


def _several(answers: Sequence[str]) -> str:
    return f"it has {len(answers)} answers, and this metric takes one" if len(answers) != 1 else ""


def _its(answers: Sequence[str]) -> str:
    return f"its answer is {answers[0]!r}"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact", "exact match", exact),
        Metric("caseless", "match but for case", caseless),
        Metric("vqa", "VQA accuracy", vqa, is_binary=False, refuses=_too_few),
        Metric("yes-no", "accuracy", yes_no, refuses=_not_yes_or_no),
        Metric("letter", "accuracy", letter, refuses=_no_letter),
        Metric("anls", "ANLS", anls, is_binary=False),
    )
}
