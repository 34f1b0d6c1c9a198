"""The measuring of recipes for docs/RECIPES.md, on a small random model, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.recipes.__main__ import build_parser, run
from benchmarks.recipes.entries import BUDGET, ENTRIES, LLAMA_CPP, RECIPES, LlamaCppEntry
from benchmarks.recipes.gguf_weights import rounded_checkpoint
from benchmarks.recipes.page import BEGIN, END, beside_llama_cpp, pages, render, with_advice
from benchmarks.recipes.plots import draw_all
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.cli.export import ADVICE
from llava_export.cli.export import build_parser as build_export_parser
from llava_export.evaluate.text import evaluate_recipe
from llava_runner.errors import UserError
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
    for entry in (it for it in RECIPES if it.name in ("8da8w", "default")):
        name = entry.name
        expected = evaluate_recipe(checkpoint, entry.recipe, [ids[:24], ids[600:624]]).to_dict()
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
    found = measured(work, tmp_path / "results.json", "default", "budget-awq-gptq")
    default, budget = found["default"], found["budget-awq-gptq"]
    assert set(budget["recipe"]["exceptions"].values()) == {"8da8w"} and budget["recipe"]["algorithm"] == "awq-gptq"
    assert default["program_bytes"] < budget["program_bytes"] <= BUDGET * default["program_bytes"]
    assert budget["key"]["calibration"] == {"name": "calibration.npy", "samples": 3}
    assert list((work / "recipes" / "calibrated").iterdir()) == []  # nothing is left behind


def test_types_of_llama_cpp_are_measured_by_their_values(work, tmp_path):
    found = measured(work, tmp_path / "results.json", "q4_0", "q4_k_m", "q5_k_m", "q8_0")
    kl = [found[name]["kl"]["value"] for name in ("q4_0", "q4_k_m", "q5_k_m", "q8_0")]
    bits = [found[name]["bits"] for name in ("q4_0", "q5_k_m", "q8_0")]
    assert kl[0] > kl[2] > kl[3] > 0 and kl[1] > kl[2]
    assert bits == sorted(bits) and bits[0] == 4.5 and bits[2] == 8.5


def test_a_rounded_checkpoint_has_all_weights_in_their_order(work):
    checkpoint = open_checkpoint(str(work / "checkpoint"))
    rounded = rounded_checkpoint(checkpoint, "q8_0")
    sources = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    for source in sources:
        before, after = checkpoint.weights.read(source).float(), rounded.weights.read(source).float()
        error = float((before - after).norm() / before.norm())
        in_q8_0 = len(source.shape) == 2 and not source.fqn.startswith("vision_encoder")
        assert 0.001 < error < 0.01 if in_q8_0 else error < 0.001, source.fqn


def test_every_entry_is_a_recipe_and_names_are_unique():
    assert len(ENTRIES) == len(RECIPES) + len(LLAMA_CPP)
    former = next(entry.recipe for entry in RECIPES if entry.name == "former-default")
    assert (former.group_size, former.head, former.algorithm) == (64, "8da4w", "minmax")
    assert len({(str(entry.recipe), entry.has_budget) for entry in RECIPES}) == len(RECIPES)


def made_up() -> dict[str, Any]:
    """Return results of all entries on the same text, in which each next one is a little nearer to the float model."""
    text = {"name": "page.npy", "sha256": "0", "windows": 8, "window_len": 512}
    measured = {}
    for place, (name, entry) in enumerate(ENTRIES.items()):
        kl = 1 / (place + 1)
        figures = {
            "device": "a GPU",
            "bytes": 10_000_000 * (place + 1),
            "bits": 4.5,
            "float_perplexity": {"value": 24.7, "low": 20.0, "high": 30.0},
            "perplexity": {"value": 25.0, "low": 20.0, "high": 30.0},
            "kl": {"value": kl, "low": 0.9 * kl, "high": 1.1 * kl},
            "top1": {"value": 0.5, "low": None, "high": None},
        }
        if isinstance(entry, LlamaCppEntry):
            measured[name] = {"key": {"text": text, "quantization": name}, **figures}
            continue
        key: dict[str, Any] = {"text": text, "flags": entry.flags, "budget": None}
        if entry.recipe.calibrates or entry.has_budget:
            key["calibration"] = {"name": "calibration.npy", "samples": 128}
        recipe = replace(entry.recipe, group_size=entry.recipe.group_size or 32, head=entry.recipe.head or "8da8w")
        exceptions = {"text_decoder.layers.0.mlp.down_proj": "8da8w"} if entry.has_budget else {}
        measured[name] = {"key": key, "recipe": replace(recipe, exceptions=exceptions).to_dict(), **figures}
    timed = {entry.name: 10.0 * (i + 1) for i, entry in enumerate(it for it in RECIPES if it.timed)}
    work = {"image": "image.png", "prompt_tokens": 64, "decode_tokens": 64, "depths": [0], "threads": 2}
    rounds = {name: [{"decode at 0": value}, {"decode at 0": 1.1 * value}] for name, value in timed.items()}
    machine = dict.fromkeys(("processor", "extensions", "memory", "system", "executorch"), "x")
    recipes = {name: measured[name]["recipe"] for name in timed}
    return {"measured": measured, "speed": {"machine": machine, "recipes": recipes, "work": work, "rounds": rounds}}


SCENE = {
    "model": "tiny-llava",
    "recipe": "8da4w",
    "accuracy": 0.85,
    "accuracy_low": 0.8,
    "accuracy_high": 0.9,
    "kl": 0.01,
    "p_value": 0.25,
    "scenes": 500,
}


def row_of(page: str, name: str) -> list[str]:
    """Return the cells of a row of the first table."""
    (line, *_) = [line for line in page.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_made_of_the_results():
    page = render(made_up(), [SCENE])
    assert row_of(page, "8da8w")[2:6] == ["20.0 MB", "4.50", "25.0", "0.500 (0.450 to 0.550)"]
    assert row_of(page, "8da8w")[6:] == ["50%", "0.67"]  # the second of the timed ones beside the third, the default
    assert row_of(page, "default")[7] == row_of(page, "gptq")[7] == row_of(page, "hqq")[7] == "1.00"
    assert row_of(page, "awq-gptq-g64")[7] == row_of(page, "mse-g64")[7] == "1.33"
    assert row_of(page, "budget")[7] == row_of(page, "q4_0")[7] == ""  # not timed
    assert "85.0% (80.0% to 90.0%)" in page and "a GPU" in page and "128 parts" in page
    assert all(sentence in " ".join(page.split()) for sentence in ADVICE)
    assert max(map(len, (line for line in page.splitlines() if not line.startswith("|")))) <= 120


def test_calibrated_recipes_are_compared_with_llama_cpp_at_equal_bytes():
    measured = made_up()["measured"]
    measured["gptq"]["bytes"] = measured["q4_0"]["bytes"]
    measured["q4_0"]["kl"]["value"] = 0.4
    measured["8da8w"]["kl"]["value"] = 1e-6
    text = beside_llama_cpp(measured)
    assert "`q4_0` takes" in text and "has a KL of 0.400" in text
    assert "as near to the float model as `q8_0` (" in text and text.count("is `8da8w`, 20.0 MB") == 3
    measured["8da8w"]["kl"]["value"] = 1.0
    assert "No recipe but `fp32` is as near to the float model as `q8_0`" in beside_llama_cpp(measured)


def test_missing_and_unlike_figures_are_refused():
    results = made_up()
    del results["measured"]["hqq"]
    with pytest.raises(UserError, match="also needs hqq"):
        render(results, [])
    results = made_up()
    results["measured"]["q4_0"]["key"]["text"] = {"name": "development.npy"}
    with pytest.raises(UserError, match="q4_0 was measured on another text than default"):
        render(results, [])
    results = made_up()
    results["measured"]["minmax"]["key"]["flags"] = "--group-size 64"
    with pytest.raises(UserError, match="minmax had other flags"):
        render(results, [])
    results = made_up()
    del results["speed"]
    with pytest.raises(UserError, match="speed of decoding"):
        render(results, [])


def test_plots_are_drawn(tmp_path):
    draw_all(made_up(), tmp_path)
    for name in ("recipes-bytes.png", "recipes-speed.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_advice_is_the_same_in_the_help_and_the_guide():
    told = " ".join(build_export_parser().format_help().split())
    assert " ".join(ADVICE).replace("`", "") in told
    assert with_advice(f"before\n{BEGIN}\nold\n{END}\nafter\n").startswith(f"before\n{BEGIN}\n{ADVICE[0]}")
    with pytest.raises(UserError, match="must have the lines"):
        with_advice("no markers")


def test_the_projects_pages_are_up_to_date():
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path} is not up to date: make docs"


def test_a_step_says_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="--work-dir is missing"):
        run(build_parser().parse_args(["speed"]))
    with pytest.raises(UserError, match="has no checkpoint: python -m benchmarks"):
        run(build_parser().parse_args(["measure", "--work-dir", str(tmp_path)]))
