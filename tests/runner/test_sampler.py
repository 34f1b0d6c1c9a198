import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from llava_runner.errors import PromptError
from llava_runner.sampler import Sampler
from tests.sampling import processed, sampling_cases


def random_logits(seed, size=1000):
    return (np.random.default_rng(seed).standard_normal(size) * 4).astype(np.float32)


def test_probabilities_equal_transformers():
    for case in sampling_cases(300):
        expected = processed(case).softmax(-1).numpy()
        actual = Sampler(**case.options).probabilities(case.logits, case.context)
        assert np.array_equal(actual > 0, expected > 0), case
        np.testing.assert_allclose(actual, expected, rtol=1e-9, err_msg=str(case))


def test_a_greedy_choice_equals_transformers():
    chosen = []
    for case in sampling_cases(250):
        greedy = Sampler(**{**case.options, "temperature": 0})
        chosen.append(greedy.sample(case.logits, case.context))
        assert chosen[-1] == int(processed(case, is_greedy=True).argmax())
    assert chosen != [int(case.logits.argmax()) for case in sampling_cases(250)]  # the penalty has changed some


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e300])
def test_an_extreme_penalty_leaves_something_to_choose(penalty):
    logits = np.array([3.0, -2.0, 1.0, 0.0, -np.inf], np.float32)
    sampler = Sampler(temperature=0.5, repetition_penalty=penalty)
    found = sampler.probabilities(logits, [0, 1, 2, 3, 4])
    assert found.sum() == pytest.approx(1) and np.isfinite(found).all() and found[4] == 0


def test_samples_follow_the_probabilities():
    logits = np.array([2.0, 1.0, 0.0, -3.0], np.float32)
    sampler = Sampler(temperature=0.8, top_p=0.9, seed=1)
    counts = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=4)
    assert counts[2:].sum() == 0  # outside the nucleus
    np.testing.assert_allclose(counts / 4000, sampler.probabilities(logits), atol=0.03)


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
@pytest.mark.parametrize("option", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_what_is_no_number_is_refused(option, value):
    with pytest.raises(PromptError, match=f"{option} .*: it must be a number"):
        Sampler(**{option: value})


def test_numbers_of_other_libraries():
    logits = random_logits(0)
    plain = Sampler(temperature=0.75, top_p=0.5).probabilities(logits)
    for kind in (np.float32, Decimal, Fraction, torch.tensor):
        found = Sampler(temperature=kind(0.75), top_p=kind(0.5), top_k=np.int64(0)).probabilities(logits)
        assert np.array_equal(found, plain)


def test_no_torch_is_needed():
    modules = "llava_runner.sampler, llava_runner.stop_strings, llava_runner.logprobs"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


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
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": -0.01},
        {"min_p": 1.01},
        {"min_p": math.nan},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"repetition_penalty": math.inf},
        {"repetition_penalty": math.nan},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(PromptError, match=next(iter(options))):
        Sampler(**options)
