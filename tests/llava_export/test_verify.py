"""The verdict on a program, from comparisons that are made up. ``integration/test_verify`` has real ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from llava_export.pte.verify import Comparison, advice, answer_failures
from llava_export.recipe import RECIPES

FEATURES = Comparison("image features", cosine=0.999, max_error=0.1)
NEAR = Comparison("prefill", cosine=0.99, max_error=0.1, top1=True, top5=1.0, kl=0.01)
FAR = Comparison("token 2", cosine=0.9, max_error=0.1, top1=False, top5=0.6, kl=2.0)
BAD_FEATURES = Comparison("image features", cosine=0.1, max_error=9.0)


def test_the_divergence_of_an_answer_is_the_mean_over_its_tokens():
    thresholds = RECIPES["8da4w"].thresholds
    assert answer_failures([*9 * [NEAR], FAR], thresholds) == []
    assert answer_failures([NEAR, FAR], thresholds) == ["KL 1.005 is above 0.35"]
    assert answer_failures([NEAR, replace(NEAR, kl=math.nan)], thresholds) == ["KL nan is above 0.35"]
    assert answer_failures([NEAR, replace(NEAR, cosine=0.5)], thresholds) == ["prefill: cosine 0.5000 is below 0.8"]
    unsure = replace(FAR, kl=0.1, is_confident=True)
    assert answer_failures([unsure], thresholds) == ["token 2: another token, where the float model was confident"]


@pytest.mark.parametrize(
    ("recipe", "comparisons", "helps"),
    [
        (RECIPES["8da4w"], [FEATURES, NEAR, FAR], True),
        (RECIPES["8da4w"], [FEATURES, NEAR], False),
        (RECIPES["8da4w"], [FEATURES, *9 * [NEAR], FAR], False),  # one token of ten
        (RECIPES["8da4w"], [BAD_FEATURES, NEAR], False),  # the vision tower has 8 bits
        (RECIPES["8da4w"].with_changes(algorithm="gptq"), [FEATURES, FAR], False),
        (RECIPES["8da8w"], [FEATURES, FAR], False),
    ],
)
def test_other_recipes_are_advised_where_four_bits_lose_too_much(recipe, comparisons, helps):
    assert bool(advice(comparisons, recipe)) == helps
