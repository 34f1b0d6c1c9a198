"""The measuring of recipes for docs/RECIPES.md, on a small random model, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.recipes.__main__ import build_parser, run
from benchmarks.recipes.entries import BUDGET, ENTRIES, LLAMA_CPP, RECIPES
from benchmarks.recipes.rounded import rounded_checkpoint
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.evaluate.text import evaluate_recipe
from tests.checkpoints import VOCAB_SIZE


@pytest.fixture(scope="module")
def work(tmp_path_factory, checkpoint_of) -> Path:
    """A folder as ``benchmarks.real_llm`` makes one, with a random model."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "checkpoint").symlink_to(checkpoint_of("tied_head"))
    generator = np.random.default_rng(0)
    for name in ("page", "calibration"):
        np.save(folder / f"{name}.npy", generator.integers(0, VOCAB_SIZE, 1200).astype(np.int32))
    return folder


def measured(work: Path, results: Path, *names: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return what the command measures of some recipes."""
    flags = ("--windows", "2", "--window-len", "24", "--calibration-samples", "3")
    run(
        build_parser().parse_args(
            ["measure", "--work-dir", str(work), "--results", str(results), *flags, *more, "--only", *names]
        )
    )
    return json.loads(results.read_text())["measured"]


def test_figures_are_those_of_evaluate(work, tmp_path):
    found = measured(work, tmp_path / "results.json", "8da8w", "default")
    ids = torch.from_numpy(np.load(work / "page.npy").astype(np.int64))
    checkpoint = open_checkpoint(str(work / "checkpoint"))
    for name in ("8da8w", "default"):
        expected = evaluate_recipe(checkpoint, ENTRIES[name].recipe, [ids[:24], ids[600:624]]).to_dict()
        for figure in ("kl", "perplexity", "top1"):
            assert found[name][figure] == pytest.approx(expected[figure], rel=1e-4)
    assert found["8da8w"]["bits"] > 8 > 4.5 == found["default"]["bits"]  # a scale of 16 bits for 32 weights
    assert found["8da8w"]["bytes"] > found["default"]["bytes"]


def test_what_was_measured_is_not_measured_again(work, tmp_path, capsys):
    path = tmp_path / "results.json"
    first = measured(work, path, "minmax")
    assert measured(work, path, "minmax", "hqq")["minmax"] == first["minmax"]
    assert "minmax: is there" in capsys.readouterr().out
    other = measured(work, path, "minmax", more=("--windows", "1"))
    assert other["minmax"]["windows"] == 1 and other["hqq"]["windows"] == 2


def test_a_budget_is_spent_without_an_export(work, tmp_path):
    found = measured(work, tmp_path / "results.json", "default", "budget-gptq")
    default, budget = found["default"], found["budget-gptq"]
    assert set(budget["recipe"]["exceptions"].values()) == {"8da8w"} and budget["recipe"]["algorithm"] == "gptq"
    assert default["program_bytes"] < budget["program_bytes"] <= BUDGET * default["program_bytes"]
    assert budget["key"]["calibration"] == {"name": "calibration.npy", "samples": 3}
    assert list((work / "recipes" / "calibrated").iterdir()) == []  # nothing is left behind


def test_types_of_llama_cpp_are_measured_by_their_values(work, tmp_path):
    found = measured(work, tmp_path / "results.json", "q4_0", "q4_k_m", "q5_k_m", "q8_0")
    kl = [found[name]["kl"]["value"] for name in ("q4_0", "q4_k_m", "q5_k_m", "q8_0")]
    bits = [found[name]["bits"] for name in ("q4_0", "q5_k_m", "q8_0")]
    assert kl[0] > kl[2] > kl[3] > 0 and kl[1] > kl[2]
    assert bits == sorted(bits) and bits[0] == 4.5 and bits[2] == 8.5


def test_a_rounded_checkpoint_has_the_language_models_weights_in_their_order(work, tmp_path):
    checkpoint = open_checkpoint(str(work / "checkpoint"))
    rounded = rounded_checkpoint(checkpoint, "q8_0", tmp_path / "rounded")
    sources = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    for source in sources:
        before, after = checkpoint.weights.read(source).float(), rounded.weights.read(source).float()
        error = float((before - after).norm() / before.norm())
        is_rounded = len(source.shape) == 2 and not source.fqn.startswith("vision_encoder")
        assert 0.001 < error < 0.01 if is_rounded else error == 0, source.fqn
    assert len(load_file(tmp_path / "rounded" / "model.safetensors")) == len({it.fqn for it in sources})


def test_every_entry_is_a_recipe_and_names_are_unique():
    assert len(ENTRIES) == len(RECIPES) + len(LLAMA_CPP)
    for entry in RECIPES:
        assert entry.recipe.vision in ("8da8w", "fp32")
    assert ENTRIES["former-default"].recipe.group_size == 64 and ENTRIES["former-default"].recipe.head == "8da4w"
