"""GPTQ: what must come out for inputs whose answer is known, and how near the outputs are for others."""

from __future__ import annotations

import pytest
import torch

from llava_export.quantize.gptq import gptq, inverse_factor
from llava_export.quantize.scales import least_error_scales, rounded
from llava_export.quantize.weights import dequantized, round_inputs

GROUP_SIZE = 32


def inputs(count: int, features: int, *, rank: int, seed: int = 0) -> torch.Tensor:
    """Return rows ``[count, features]`` of which some features are large, and most depend on others."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, rank, generator=generator) @ torch.randn(rank, features, generator=generator)
    own = torch.randn(count, features, generator=generator)
    return (mixed + own) * torch.logspace(-1, 1, features)[torch.randperm(features, generator=generator)]


def plain(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight, rounded and dequantized, without a look at inputs."""
    groups = weight.reshape(-1, GROUP_SIZE)
    scales = least_error_scales(groups, torch.ones_like(groups))
    return dequantized(rounded(groups, scales).view(weight.shape), scales.view(len(weight), -1))


def test_independent_inputs_change_no_rounding():
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(1))
    found = dequantized(*gptq(weight, torch.eye(96), torch.zeros(96, 96), group_size=GROUP_SIZE))
    torch.testing.assert_close(found, plain(weight))


@pytest.mark.parametrize(("features", "count"), [(96, 500), (192, 60), (320, 900)])  # 60 rows: not all is determined
def test_outputs_are_nearer_than_those_of_plain_rounding(features, count):
    x = inputs(count, features, rank=8)
    weight = torch.randn(40, features, generator=torch.Generator().manual_seed(2))
    integers, scales = gptq(weight, x.T @ x, torch.zeros(features, features), group_size=GROUP_SIZE)
    assert integers.min() >= -8 and integers.max() <= 7 and (scales > 0).all()
    errors = [(x @ (weight - it).T).square().sum() for it in (dequantized(integers, scales), plain(weight))]
    assert errors[0] < 0.6 * errors[1]


def test_outputs_come_nearer_to_those_of_the_float_model():
    """The rounded model's inputs differ from the float model's by what a linear can make up for, in part."""
    y = inputs(800, 64, rank=8)
    x = y + 0.1 * y.roll(1, dims=1)
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(3))
    with_drift, without = (
        dequantized(*gptq(weight, x.T @ x, drift, group_size=GROUP_SIZE))
        for drift in ((y - x).T @ x, torch.zeros(64, 64))
    )
    errors = [(y @ weight.T - x @ it.T).square().sum() for it in (with_drift, without)]
    assert errors[0] < 0.6 * errors[1]


def test_inputs_that_are_always_zero_do_no_harm():
    x = inputs(300, 96, rank=4)
    x[:, 10:50] = 0
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(4))
    for hessian in (x.T @ x, torch.zeros(96, 96)):
        integers, scales = gptq(weight, hessian, torch.zeros(96, 96), group_size=GROUP_SIZE)
        assert scales.isfinite().all() and (scales > 0).all()
        error = (dequantized(integers, scales) - weight)[:, 10:50]
        assert error.abs().mean() < 0.2  # rounded, not lost


def test_the_factor_is_that_of_the_inverse():
    x = inputs(200, 40, rank=4)
    hessian = x.T @ x / 200
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(6))
    factor = inverse_factor(hessian, order)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped[order][:, order], torch.eye(40), rtol=1e-3, atol=1e-3)


def test_a_matrix_without_inverse_is_damped_more():
    """In float32 sums of many products may have a slightly negative eigenvalue."""
    hessian = torch.eye(40)
    hessian[3, 3] = -0.05
    factor = inverse_factor(hessian, torch.arange(40))
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(40)
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(40), rtol=1e-4, atol=1e-4)
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        inverse_factor(hessian * torch.nan, torch.arange(40))


def test_inputs_are_rounded_as_torchao_does():
    from llava_export.quantize.weights import int4_weight

    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(5)) * torch.tensor([[1], [0.01], [30], [1], [0]])
    x[3] = x[3].abs() + 2  # zero is in the range nevertheless
    linear = torch.nn.Linear(96, 96, bias=False)
    integers, scales = torch.eye(96, dtype=torch.int8), torch.ones(96, 3)
    linear.weight = int4_weight(integers, scales, rounds_inputs=True)
    torch.testing.assert_close(round_inputs(x), linear(x).detach(), rtol=1e-4, atol=1e-5)
