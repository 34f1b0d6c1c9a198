"""Answers are scored as the data sets' own evaluations do, and figures have the intervals that are known of them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from llava_export.evaluate.figures import contest, mcnemar, score_figures, yes_no_figures
from llava_export.evaluate.intervals import mean, median, proportion, ratio
from llava_export.evaluate.normal import normal
from llava_export.evaluate.records import Record, Result
from llava_export.evaluate.scores import METRICS, anls, caseless, exact, letter, says_yes, vqa, yes_no


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Two Dogs.", "2 dogs"),
        ("a  cat,\nsleeping", "cat sleeping"),
        ("100,978 people", "100978 people"),
        ("yes, it is", "yes it is"),
        ("It costs 3.50.", "it costs 3.50"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("Im sure theyre hers", "i'm sure they're hers"),
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("black-and-white (striped)", "black and white striped"),
        ("none", "0"),
        ("shed", "shed"),  # no contraction, as a garden has one
        ("the", ""),
    ],
)
def test_answers_are_compared_as_in_the_vqa_evaluation(answer, expected):
    assert normal(answer) == normal(normal(answer)) == expected


def test_vqa_accuracy_is_the_mean_over_all_sets_of_nine():
    for yes in range(11):
        answers = ["Yes"] * yes + ["no"] * (10 - yes)
        sets = [nine.count("Yes") / 3 for nine in itertools.combinations(answers, 9)]
        assert vqa("yes.", answers) == pytest.approx(sum(min(it, 1) for it in sets) / len(sets))
    assert vqa("2", ["two"] * 3 + ["three"] * 7) == pytest.approx(0.9)
    assert METRICS["vqa"].refuses(["yes"] * 3) and not METRICS["vqa"].refuses(["yes"] * 10)


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [
        ("Yes", True),
        ("yes, there is a dog.", True),
        ("No.", False),
        ("no", False),
        ("There is not a dog", False),
        ("A dog. No cat.", True),  # the first sentence counts
        ("I know", True),
        ("", True),
    ],
)
def test_yes_and_no_are_read_as_pope_does(answer, is_yes):
    assert says_yes(answer) is is_yes
    assert yes_no(answer, ["yes"]) == is_yes and yes_no(answer, ["no"]) != is_yes


@pytest.mark.parametrize("answer", ["B", "B.", " B", "(B)", "B. Maryland", "B: x", "The answer is B.", "answer is (B)"])
def test_a_letter_is_found_in_an_answer(answer):
    assert letter(answer, ["B"]) == 1 and letter(answer, ["A"]) == 0


@pytest.mark.parametrize("answer", ["", "Because", "b", "A", "Maryland (B)"])
def test_what_names_another_letter_or_none_is_wrong(answer):
    assert letter(answer, ["B"]) == 0


def test_exact_and_caseless_matches():
    assert exact(" Red ", ["blue", "Red"]) == 1 and exact("red", ["Red"]) == 0 and exact("Red.", ["Red"]) == 0
    assert caseless("red  car.", ["Red car"]) == 1 and caseless("red", ["red car"]) == 0


def edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance by its recursive definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return edit_distance(a[1:], b[1:])
    return 1 + min(edit_distance(a[1:], b), edit_distance(a, b[1:]), edit_distance(a[1:], b[1:]))


def test_anls_is_the_similarity_to_the_nearest_answer_from_a_half_on():
    assert anls("Denver  broncos", ["x", "denver Broncos"]) == 1
    assert anls("abcd", ["abxx"]) == 0.5 and anls("abcd", ["axxx"]) == 0 and anls("", ["a"]) == 0
    generator = random.Random(0)
    for _ in range(200):
        a, b = ("".join(generator.choices("ab", k=generator.randint(1, 6))) for _ in range(2))
        similarity = 1 - edit_distance(a, b) / max(len(a), len(b))
        assert anls(a, [b]) == (pytest.approx(similarity) if similarity >= 0.5 else 0)


@pytest.mark.parametrize(  # by scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    ("hits", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775328),
        (7, 10, 0.396778147, 0.892208733),
        (10, 10, 0.7224672, 1.0),
        (490, 500, 0.963579817, 0.989100816),
        (1, 1, 0.206549314, 1.0),
    ],
)
def test_proportions_have_wilsons_interval(hits, count, low, high):
    figure = proportion("x", hits, count)
    assert (figure.value, figure.low, figure.high) == pytest.approx((hits / count, low, high))
    assert proportion("x", 0, 0).value is None


def test_the_bootstraps_interval_is_that_of_a_large_sample_and_always_the_same():
    values = np.random.default_rng(5).exponential(size=2000).tolist()
    figure = mean("x", values)
    half = 1.96 * np.std(values) / np.sqrt(2000)
    assert figure.low == pytest.approx(figure.value - half, rel=0.01)
    assert figure.high == pytest.approx(figure.value + half, rel=0.01)
    assert figure == mean("x", values)
    assert ratio("x", [(1, 2), (3, 2), (0, 0)]).value == 1 and ratio("x", [(0, 0)]).value is None
    assert median("x", [5.0, 1.0, 3.0]).value == 3 and median("x", []).value is None
    assert (median("x", [5.0]).value, median("x", [5.0]).low) == (5, None)


@pytest.mark.parametrize(  # by scipy.stats.binomtest(first, first + second).pvalue
    ("first", "second", "p_value"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (1, 9, 0.021484375),
        (5, 5, 1.0),
        (30, 10, 0.0022214337732293643),
        (400, 300, 0.0001784763144856244),
    ],
)
def test_mcnemars_test_is_the_exact_binomial_one(first, second, p_value):
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(p_value)


def record(expected: str, *answers: str, metric: str = "yes-no") -> Record:
    results = tuple(Result(answer, METRICS[metric].score(answer, [expected]), tokens=2) for answer in answers)
    return Record("1", "", "x.png", "?", (expected,), results)


def test_popes_figures():
    told = [("yes", "yes")] * 30 + [("no", "Yes.")] * 10 + [("yes", "no")] * 20 + [("no", "No")] * 40
    records = [record(expected, answer) for expected, answer in told]
    found = {figure.name: figure for figure in score_figures(records, METRICS["yes-no"])}
    values = {name: figure.value for name, figure in found.items()}
    assert values == pytest.approx({"accuracy": 0.7, "precision": 0.75, "recall": 0.6, "F1": 2 / 3, "yes ratio": 0.4})
    assert 0.5 < (found["F1"].low or 0) < 2 / 3 < (found["F1"].high or 1) < 0.8
    silent = yes_no_figures([record("no", "no")], ["no"])
    assert [figure.value for figure in silent] == [None, None, None, 0]


def test_two_packages_are_compared_item_by_item():
    records = [record("yes", "yes", "no")] * 3 + [record("no", "yes", "no")] + [record("yes", "yes", "yes")] * 4
    found = contest(records)
    assert (found.first_better, found.second_better, found.p_value) == (3, 1, 0.625)
    assert found.difference.value == pytest.approx(-0.25)
