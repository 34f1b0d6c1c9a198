"""Scales of 4-bit groups: their error against an exhaustive search, and the groups that are easy to get wrong."""

from __future__ import annotations

import pytest
import torch

from llava_export.quantize.scales import least_error_scales, rounded


def error(weight: torch.Tensor, scale: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """Return the weighted squared error of each group."""
    return (importance * (weight - scale * rounded(weight, scale)) ** 2).sum(-1)


@pytest.mark.parametrize("group_size", [32, 96, 128])
def test_the_search_is_near_an_exhaustive_one(group_size):
    torch.manual_seed(group_size)
    weight = torch.randn(400, group_size) * torch.rand(400, 1)
    importance = torch.rand(group_size).expand_as(weight)
    found = error(weight, least_error_scales(weight, importance), importance)
    largest = weight.abs().amax(-1, keepdim=True)
    candidates = [largest / becomes for becomes in torch.arange(4, 16, 0.05)]
    best = torch.stack([error(weight, scale, importance) for scale in candidates]).amin(0)
    plain = error(weight, largest / 7.5, importance)
    assert found.sum() < 1.06 * best.sum()
    assert best.sum() < 0.9 * plain.sum()  # there is something to find


def test_important_weights_are_nearer():
    torch.manual_seed(0)
    weight = torch.randn(300, 64)
    importance = torch.ones_like(weight)
    importance[:, :8] = 100
    nearer, plain = (
        (weight - scale * rounded(weight, scale))[:, :8].square().sum()
        for scale in (least_error_scales(weight, importance), least_error_scales(weight, torch.ones_like(weight)))
    )
    assert nearer < 0.8 * plain


def test_odd_groups_get_scales_that_xnnpack_takes():
    groups = torch.zeros(6, 32)
    groups[1, 3] = -1e-30
    groups[2] = 5
    groups[3, 0] = 3e4
    groups[4] = torch.linspace(-1, 0, 32)
    groups[5] = -groups[4]
    for importance in (None, torch.zeros(32).expand_as(groups)):
        scales = least_error_scales(groups, importance)
        assert ((scales > 1e-30) & scales.isfinite()).all()
        assert torch.equal(scales, scales.to(torch.bfloat16).to(torch.float32))
    integers = rounded(groups, least_error_scales(groups))
    assert integers[0].eq(0).all() and integers[4].min() == -8 and integers[5].max() == 7
    assert torch.allclose(least_error_scales(groups)[2] * integers[2, 0], torch.tensor(5.0), rtol=0.005)
