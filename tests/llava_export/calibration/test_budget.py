"""Bytes spent where they matter: what is measured of each linear, what is chosen by it, and which budgets there are."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from llava_export.benchmark.plots import plot_sensitivity
from llava_export.calibration import sensitivity
from llava_export.calibration.budget import least, most, spent, spent_text
from llava_export.calibration.calibrate import LINEARS
from llava_export.calibration.data import calibration_rows
from llava_export.calibration.samples import open_samples
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.cli.flags import byte_count
from llava_export.errors import ExportError, RecipeError
from llava_export.evaluate.text import evaluate_recipe
from llava_export.models.llava import LlavaModel
from llava_export.models.names import LM_HEAD
from llava_export.pte.budget import spend_budget
from llava_export.pte.options import Options
from llava_export.pte.plan import plan_for
from llava_export.recipe import RECIPES, Recipe
from llava_export.stages import Stages
from llava_export.streams import DecoderBlocks

RECIPE = RECIPES["8da4w"]
LENGTH = 24


@pytest.fixture(scope="module")
def checkpoint(checkpoint_of) -> Checkpoint:
    return open_checkpoint(str(checkpoint_of("grouped_query")))


@pytest.fixture(scope="module")
def shapes(checkpoint) -> LlavaModel:
    return checkpoint.build_model(max_context_len=1)


def total(recipe: Recipe, model: LlavaModel) -> int:
    return sum(recipe.stored_bytes(model).values())


def test_what_is_measured_is_the_divergence_of_a_model_with_that_linear_quantized(checkpoint, shapes):
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randint(checkpoint.config.text.vocab_size, (LENGTH + 1,), generator=generator) for _ in range(3)]
    rows = DecoderBlocks(checkpoint, max_len=LENGTH).embed([ids[:-1] for ids in windows])
    steps: list[None] = []
    found = sensitivity.measure(
        checkpoint, least(RECIPE, shapes), rows, by_linear=True, on_step=lambda: steps.append(None)
    )
    assert len(steps) == sensitivity.num_steps(checkpoint)
    assert set(found) == {f"text_decoder.layers.{i}.{name}" for i in range(2) for name in LINEARS} | {LM_HEAD}
    for fqn in ("text_decoder.layers.0.self_attn.qkv_proj", "text_decoder.layers.1.mlp.down_proj", LM_HEAD):
        alone = {"head": "8da4w"} if fqn == LM_HEAD else {"head": "fp32", "exceptions": {fqn: "8da4w"}}
        expected = evaluate_recipe(checkpoint, RECIPES["fp32"].with_changes(**alone), windows).kl.value
        assert found[fqn] == pytest.approx(expected, rel=0.01)


def test_a_divided_divergence_is_near_that_of_each_linear(monkeypatch):
    checkpoint = open_checkpoint("tiny-llava")
    recipe = least(RECIPE, checkpoint.build_model(max_context_len=1))
    rows = calibration_rows(
        checkpoint,
        open_samples(None),
        prompt=find_prompt(checkpoint),
        max_len=100,
        embed=DecoderBlocks(checkpoint, max_len=1).embed,
        limit=2,
    )
    exact, divided = (sensitivity.measure(checkpoint, recipe, rows, by_linear=each) for each in (True, False))
    assert exact.keys() == divided.keys() and exact[LM_HEAD] == divided[LM_HEAD]
    logs = torch.tensor([[math.log(found[fqn]) for fqn in exact] for found in (exact, divided)])
    assert torch.corrcoef(logs)[0, 1] > 0.95
    monkeypatch.setattr(sensitivity, "SMALL_DECODER", 1)
    assert sensitivity.measure(checkpoint, recipe, rows[:1]) == sensitivity.measure(
        checkpoint, recipe, rows[:1], by_linear=False
    )


def test_bytes_go_to_the_linears_that_save_most_for_a_byte(shapes):
    coarse, fine = least(RECIPE, shapes), most(RECIPE, shapes)
    names = [f"text_decoder.layers.{i}.{name}" for i in range(2) for name in LINEARS] + [LM_HEAD]
    costs = {
        fqn: fine.stored_bytes(shapes)[f"{fqn}.weight"] - coarse.stored_bytes(shapes)[f"{fqn}.weight"] for fqn in names
    }
    by_ratio = ["text_decoder.layers.1.mlp.down_proj", LM_HEAD, "text_decoder.layers.0.self_attn.o_proj"]
    kl = {fqn: costs[fqn] * 1e-9 for fqn in names} | {fqn: costs[fqn] / 10**i for i, fqn in enumerate(by_ratio)}
    for count in range(4):
        room = sum(costs[fqn] for fqn in by_ratio[:count])
        chosen = spent(coarse, fine, shapes, kl, room=room)
        assert set(chosen.exceptions) == set(by_ratio[:count]) - {LM_HEAD}
        assert set(chosen.exceptions.values()) <= {"8da8w"} and chosen.head == ("8da8w" if count > 1 else "8da4w")
        assert total(chosen, shapes) == total(coarse, shapes) + room
        chosen.check(shapes)
    passed_over = spent(coarse, fine, shapes, kl, room=costs[by_ratio[0]] - 1)
    assert by_ratio[0] not in passed_over.exceptions and total(passed_over, shapes) > total(coarse, shapes)
    all_of_them = spent(coarse, fine, shapes, kl, room=10**9)
    assert total(all_of_them, shapes) == total(fine, shapes)
    assert spent_text(coarse, num_layers=2) == "4 bits for all linears of the decoder"
    assert spent_text(chosen, num_layers=2) == "8 bits for 1 of 2 self_attn.o_proj, 1 of 2 mlp.down_proj, the head"


def test_a_head_that_is_chosen_stays_and_a_tied_one_of_8_bits_is_the_least(checkpoint_of, shapes):
    tied = open_checkpoint(str(checkpoint_of("tied_head"))).build_model(max_context_len=1)
    assert least(RECIPE, tied).head == "8da8w" and least(RECIPE, shapes).head == "8da4w"
    given = RECIPE.with_changes(head="8da4w")
    assert least(given, tied).head == most(given, tied).head == "8da4w"
    for name in ("8da8w", "fp32"):
        with pytest.raises(RecipeError, match=f"recipe {name} has no linears of 4 bits"):
            least(RECIPES[name], tied)


@pytest.mark.parametrize("algorithm", ["mse", "gptq"])
def test_the_budgets_of_a_plan(algorithm, checkpoint):
    options = Options(recipe=RECIPE.with_changes(algorithm=algorithm))
    with pytest.raises(ExportError, match="not possible: the least is --budget") as refused:
        plan_for(checkpoint, replace(options, budget=100_000))
    (shown,) = re.findall(r"--budget ([\d.]+MB)", str(refused.value))
    smallest = byte_count(shown)
    with pytest.raises(ExportError):
        plan_for(checkpoint, replace(options, budget=smallest - 10_001))  # it is shown with two digits
    plan = plan_for(checkpoint, replace(options, budget=smallest))
    assert plan.budget and 0 <= plan.budget.room <= 10_000 and plan.samples
    assert plan.estimate.program <= smallest
    largest = plan_for(checkpoint, replace(options, budget=10**9))
    assert largest.budget is None and largest.options.recipe == RECIPES["8da8w"].fitted(
        checkpoint.build_model(max_context_len=1)
    )


def test_a_budget_is_spent(checkpoint):
    options = Options(recipe=RECIPE)
    ends = [
        plan_for(checkpoint, replace(options, budget=10**9)).estimate.program,
        plan_for(checkpoint, options).estimate.program,
    ]
    budget = sum(ends) // 2
    plan, kl = spend_budget(plan_for(checkpoint, replace(options, budget=budget)), stages=Stages())
    assert plan.budget is None and set(plan.options.recipe.exceptions) < set(kl)
    spent_on = plan_for(checkpoint, replace(options, recipe=plan.options.recipe)).estimate
    assert 0.97 * budget < spent_on.program <= budget


def test_what_was_measured_is_drawn(tmp_path):
    kl = {f"text_decoder.layers.{i}.{name}": 0.1 / (i + 1) for i in range(3) for name in LINEARS} | {LM_HEAD: 0.01}
    eight = {"text_decoder.layers.0.mlp.down_proj": "8da8w"}
    contents = set()
    for recipe in (RECIPE, RECIPE.with_changes(exceptions=eight), RECIPE.with_changes(head="8da8w")):
        plot_sensitivity(kl, tmp_path / "plot.png", recipe=recipe, title="a model")
        contents.add((tmp_path / "plot.png").read_bytes())
    assert len(contents) == 3 and all(content.startswith(b"\x89PNG") for content in contents)
    plot_sensitivity(dict.fromkeys(kl, 0.0), tmp_path / "zeros.png", recipe=RECIPE, title="a model that loses nothing")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("3.6GB", 3_600_000_000), ("950MB", 950_000_000), ("3.5 GiB", 3_758_096_384), ("800mib", 838_860_800),
        ("750000", 750_000), ("1 byte", 1), ("2bytes", 2), ("64kB", 64_000), ("0.1kib", 102),
    ],
)  # fmt: skip
def test_sizes(text, count):
    assert byte_count(text) == count
