"""The built-in models still answer well after quantization, about scenes that were not in training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scenes import write_scenes
from llava_export.builtin import CHECKPOINTS
from llava_export.cli import evaluate

SCENES = 200
FLOOR = 0.95


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, count=SCENES)
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_four_bit_program_answers_held_out_scenes(name, package_of, scenes, tmp_path):
    program, figures = package_of(name).program, tmp_path / "figures.json"
    flags = ["--dataset", scenes, "--against", name, "--json", figures, "--at-least", FLOOR]
    assert evaluate.run(evaluate.build_parser().parse_args([*map(str, [program, *flags])])) == 0
    found = json.loads(figures.read_text())
    assert found["items"] == SCENES and len(found["kinds"]) >= 6
    four_bit = found["packages"][0]["figures"][0]["value"]
    assert four_bit >= FLOOR
    assert found["float"]["value"] - four_bit <= 0.02
