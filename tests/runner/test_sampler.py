import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from llava_runner.errors import PromptError
from llava_runner.sampler import Sampler


def random_logits(seed, size=1000):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_probabilities_equal_transformers_warpers(temperature, top_p):
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    sampler = Sampler(temperature=temperature, top_p=top_p)
    for seed in range(20):
        logits = random_logits(seed)
        expected = warpers(torch.LongTensor(), logits.double().unsqueeze(0)).softmax(-1)[0]
        actual = sampler.probabilities(logits)
        assert torch.equal(actual > 0, expected > 0)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


def test_samples_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -3.0])
    sampler = Sampler(temperature=0.8, top_p=0.9, seed=1)
    counts = torch.bincount(torch.tensor([sampler.sample(logits) for _ in range(4000)]), minlength=4)
    assert counts[2:].sum() == 0  # outside the nucleus
    torch.testing.assert_close(counts / 4000, sampler.probabilities(logits).float(), atol=0.03, rtol=0)


def test_temperature_zero_is_greedy():
    for seed in range(5):
        logits = random_logits(seed)
        assert Sampler().sample(logits) == int(logits.argmax())


@pytest.mark.parametrize("temperature", [5e-324, 1e-30])
def test_tiny_temperatures_do_not_overflow(temperature):
    logits = random_logits(0)
    assert Sampler(temperature=temperature, top_p=0.9).sample(logits) == int(logits.argmax())


def test_a_seed_repeats_and_its_absence_does_not():
    logits = random_logits(0)

    def draw(seed):
        sampler = Sampler(temperature=3.0, seed=seed)
        return [sampler.sample(logits) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("seven", [7, np.uint32(7), np.int8(7), torch.tensor(7)], ids=repr)
def test_a_seed_is_whatever_is_an_integer(seven):
    logits = random_logits(0)
    draws = [[Sampler(temperature=3.0, seed=seed).sample(logits) for _ in range(5)] for seed in (7, seven)]
    assert draws[0] == draws[1]
    Sampler(seed=np.uint64(2**64 - 1))


@pytest.mark.parametrize("seed", [1.5, 7.0, "7", np.float32(7), Decimal(7), b"7", [7], torch.tensor([7, 7]), object()])
def test_what_is_no_integer_is_no_seed(seed):
    with pytest.raises(PromptError, match=r"seed .*: it must be a whole number"):
        Sampler(seed=seed)


@pytest.mark.parametrize("value", ["1", None, 1j, [1.0], torch.tensor([0.5, 0.5])], ids=repr)
@pytest.mark.parametrize("option", ["temperature", "top_p"])
def test_what_is_no_number_is_refused(option, value):
    with pytest.raises(PromptError, match=f"{option} .*: it must be a number"):
        Sampler(**{option: value})


def test_numbers_of_other_libraries():
    logits = random_logits(0)
    plain = Sampler(temperature=0.75, top_p=0.5).probabilities(logits)
    for kind in (np.float32, Decimal, Fraction, torch.tensor):
        assert torch.equal(Sampler(temperature=kind(0.75), top_p=kind(0.5)).probabilities(logits), plain)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 10**400},
        {"top_p": 0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(PromptError, match=next(iter(options))):
        Sampler(**options)
