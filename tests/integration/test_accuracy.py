"""The built-in model still answers after quantization, on scenes that no training saw."""

from __future__ import annotations

import io

import evaluate
from rich.console import Console

SCENES = 200
FLOOR = 0.95


def test_four_bit_program_answers_held_out_scenes(tiny_package):
    def accuracy(answer: evaluate.Answer) -> float:
        console = Console(file=io.StringIO())
        right, asked = evaluate.accuracy(answer, count=SCENES, console=console, label="")
        assert asked.total() == SCENES and len(asked) >= 6
        return right.total() / SCENES

    four_bit = accuracy(evaluate.package_answers(tiny_package.program))
    in_float = accuracy(evaluate.float_answers("tiny-llava", package=tiny_package.program))
    assert four_bit >= FLOOR
    assert in_float - four_bit <= 0.02
