"""The built-in models still answer well after quantization, about scenes that were not in training."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks import evaluate
from llava_export.builtin import CHECKPOINTS

SCENES = 200
FLOOR = 0.95


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_four_bit_program_answers_held_out_scenes(name, package_of):
    program = package_of(name).program

    def accuracy(answer: evaluate.Answer) -> float:
        console = Console(file=io.StringIO())
        right, asked = evaluate.accuracy(answer, count=SCENES, console=console, label="")
        assert asked.total() == SCENES and len(asked) >= 6
        return right.total() / SCENES

    four_bit = accuracy(evaluate.package_answers(program))
    in_float = accuracy(evaluate.float_answers(name, package=program))
    assert four_bit >= FLOOR
    assert in_float - four_bit <= 0.02
