"""The verdict on a program, from comparisons that are made up. ``integration/test_verify`` has real ones."""

from __future__ import annotations

import pytest

from llava_export.pte.verify import Comparison, advice
from llava_export.recipe import RECIPES

FEATURES = Comparison("image features", cosine=0.999, max_error=0.1)
NEAR = Comparison("prefill", cosine=0.99, max_error=0.1, top1=True, top5=1.0, kl=0.01)
FAR = Comparison("token 2", cosine=0.9, max_error=0.1, top1=False, top5=0.6, kl=2.0)
BAD_FEATURES = Comparison("image features", cosine=0.1, max_error=9.0)


@pytest.mark.parametrize(
    ("recipe", "comparisons", "helps"),
    [
        (RECIPES["8da4w"], [FEATURES, NEAR, FAR], True),
        (RECIPES["8da4w"], [FEATURES, NEAR], False),
        (RECIPES["8da4w"], [BAD_FEATURES, NEAR], False),  # the vision tower has 8 bits
        (RECIPES["8da4w"].with_changes(algorithm="gptq"), [FEATURES, FAR], False),
        (RECIPES["8da8w"], [FEATURES, FAR], False),
    ],
)
def test_other_recipes_are_advised_where_four_bits_lose_too_much(recipe, comparisons, helps):
    assert bool(advice(comparisons, recipe)) == helps
