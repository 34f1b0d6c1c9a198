"""AWQ: which inputs get which factors, and how near the outputs are."""

from __future__ import annotations

import pytest
import torch

from llava_export.quantize.awq import input_factors, rounded_for_inputs
from llava_export.quantize.weights import dequantized

GROUP_SIZE = 32


def weight_of(rows: int, features: int) -> torch.Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(1))


def inputs(count: int, features: int, *, large: list[int]) -> torch.Tensor:
    """Return rows ``[count, features]`` of which some features are 30 times as large as the others."""
    rows = torch.randn(count, features, generator=torch.Generator().manual_seed(2))
    rows[:, large] *= 30
    return rows


def test_inputs_of_one_size_get_no_factors():
    factors = input_factors(weight_of(24, 96), 7 * torch.eye(96), group_size=GROUP_SIZE)
    torch.testing.assert_close(factors, torch.ones(96))


@pytest.mark.parametrize(("rows", "large"), [(24, [3]), (700, [3, 40, 41, 95])])  # of 700 rows some are looked at
def test_large_inputs_get_large_factors_and_outputs_come_nearer(rows, large):
    x, weight = inputs(500, 96, large=large), weight_of(rows, 96)
    hessian = x.T @ x
    factors = input_factors(weight, hessian, group_size=GROUP_SIZE)
    assert factors[large].min() > 1.5 * factors.median()
    errors = []
    for by in (factors, torch.ones(96)):
        found = dequantized(*rounded_for_inputs(weight * by, hessian.diagonal() / by**2, group_size=GROUP_SIZE))
        errors.append((x @ (found / by - weight).T).square().sum())
    assert errors[0] < 0.8 * errors[1]


def test_inputs_that_are_always_zero_do_no_harm():
    x = inputs(300, 96, large=[5])
    x[:, 10:50] = 0
    for hessian in (x.T @ x, torch.zeros(96, 96)):
        factors = input_factors(weight_of(8, 96), hessian, group_size=GROUP_SIZE)
        assert factors.isfinite().all() and (factors > 0).all()
