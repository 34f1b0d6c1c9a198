"""What recipes lose on hard scenes is measured in torch: answers read in one pass, compared with other ways to ask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sentencepiece
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from benchmarks.recipes import entries, forced
from benchmarks.recipes.__main__ import SCENES
from benchmarks.recipes.entries import DEFAULT, ENTRIES
from benchmarks.recipes.forced import Reading, answer_logits, image_features, loaded_model, questions_about, reading
from benchmarks.recipes.gguf_weights import rounded_checkpoint, stored_in_gguf
from benchmarks.recipes.on_scenes import NAMES, Features, figures, fitted, measured, merged, stored_bytes, vision_of
from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.gguf.export import export_gguf, mmproj_name, planned_tensors, text_name
from llava_export.recipe import RECIPES
from llava_export.stages import Stages
from training import accuracy
from training.model import num_image_tokens
from training.questions import HELD_OUT_SEED, question_for
from training.scenes import HARD
from training.tokenizer import Tokenizer

SEEDS = range(HELD_OUT_SEED + 8, HELD_OUT_SEED + 20)
MAX_LEN = 256


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, as the command does: it is the fastest for small models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny_llava() -> Checkpoint:
    return open_checkpoint("tiny-llava")


def test_answers_read_in_one_pass_are_right_where_transformers_says_them(tiny_llava):
    folder = CHECKPOINTS["tiny-llava"]
    tokenizer = Tokenizer(
        sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), num_image_tokens("mlp")
    )
    saying, reader = accuracy.load(folder), loaded_model(tiny_llava, max_len=MAX_LEN)
    outcomes = set()
    for seed, question in zip(SEEDS, questions_about(SEEDS, HARD, tiny_llava), strict=True):
        image, text, expected = question_for(seed, HARD)
        logits = answer_logits(reader, question, image_features(reader, question))
        is_right = logits.argmax(-1).tolist() == question.answer
        assert is_right == (accuracy.answer(saying, image, text, tokenizer=tokenizer) == expected), seed
        outcomes.add(is_right)
    assert outcomes == {True, False}  # or it would not tell much


def test_weights_in_floats_compute_what_torchao_computes(tiny_llava, monkeypatch):
    recipe = RECIPES["8da4w"].fitted(tiny_llava.build_model(max_context_len=1))
    ours = loaded_model(tiny_llava, recipe, max_len=MAX_LEN)
    monkeypatch.setattr(forced, "_dequantize", lambda model: None)
    torchao = loaded_model(tiny_llava, recipe, max_len=MAX_LEN)
    compared = 0
    for fqn, module in torchao.named_modules():
        if isinstance(module, torch.nn.Linear):
            x = torch.randn(1, 5, module.in_features, generator=torch.Generator().manual_seed(compared))
            torch.testing.assert_close(ours.get_submodule(fqn)(x), module(x).detach(), rtol=1e-3, atol=1e-4, msg=fqn)
            compared += 1
    ids = torch.tensor([[3, 1, 4]])
    assert torch.equal(ours.token_embedding(ids), torchao.token_embedding(ids))
    assert compared == 4 * 5 + 4 * 4 + 2 + 1  # of the vision tower, the decoder, the projector, and the head


def test_two_recipes_are_measured_with_one_model():
    two = [ENTRIES[name] for name in ("fp32", "default")]
    (plain, _), (rounded, _) = measured("tiny-mobilevlm", scenes=8, entries=two)
    checkpoint = open_checkpoint("tiny-mobilevlm")
    questions = questions_about(range(HELD_OUT_SEED, HELD_OUT_SEED + 8), HARD, checkpoint)
    model = loaded_model(checkpoint, max_len=MAX_LEN)
    right = sum(
        answer_logits(model, it, image_features(model, it)).argmax(-1).tolist() == it.answer for it in questions
    )
    assert (plain["recipe"], plain["accuracy"], plain["scenes"]) == ("fp32", right / 8, 8)
    assert (plain["kl"], plain["top1"], plain["lost"], plain["gained"], plain["p_value"]) == (0, 1, 0, 0, 1)
    assert 0 < rounded["kl"] < 0.1 and rounded["top1"] > 0.9 and rounded["bytes"] < plain["bytes"] / 4
    assert rounded["accuracy_low"] < rounded["accuracy"] < rounded["accuracy_high"] or rounded["accuracy"] in (0, 1)


def test_figures_count_what_only_one_model_has_right():
    def read(right: str) -> list[Reading]:
        return [Reading(tokens=4, right=it == "+", agreed=3, kl=0.2) for it in right]

    row = figures(read("+-+--+----"), read("++++++++--"))
    assert (row["accuracy"], row["lost"], row["gained"], row["scenes"]) == (0.3, 5, 0, 10)
    assert row["p_value"] == pytest.approx(2 / 2**5)
    assert row["kl"] == pytest.approx(0.05) and row["top1"] == 0.75
    row = figures(read("-+"), read("+-"))
    assert (row["lost"], row["gained"], row["p_value"]) == (1, 1, 1.0)


def test_a_reading_compares_with_the_float_model():
    question = forced.Question(torch.zeros(3, 2, 2).byte().numpy(), [[1], [2]], [0, 1])
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    other = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    found = reading(other.log(), probabilities.log(), question)
    assert (found.tokens, found.right, found.agreed) == (2, False, 1)
    assert found.kl == pytest.approx(0.25 * torch.tensor(2.0).log().item())
    assert reading(probabilities.log(), other.log(), question).right


def test_the_published_figures_are_of_hard_scenes_and_of_all_entries():
    rows = json.loads(SCENES.read_text())
    assert [(it["model"], it["recipe"]) for it in rows] == [(model, name) for model in CHECKPOINTS for name in NAMES]
    for row in rows:
        assert row["scenes"] >= 500 and row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
        if row["recipe"] == "fp32":
            assert 0.8 <= row["accuracy"] <= 0.9 and row["kl"] == 0


def test_what_is_not_measured_again_stays():
    def row(model: str, recipe: str, *, scenes: int, kl: float) -> dict[str, Any]:
        return {"model": model, "recipe": recipe, "scenes": scenes, "kl": kl}

    before = [
        row("tiny-llava", "q8_0", scenes=9, kl=1),
        row("tiny-llava", "fp32", scenes=9, kl=1),
        row("tiny-mobilevlm", "fp32", scenes=8, kl=1),
        row("tiny-llava", "no longer there", scenes=9, kl=1),
    ]
    again = [row("tiny-mobilevlm", "default", scenes=9, kl=2), row("tiny-llava", "q8_0", scenes=9, kl=2)]
    found = [(it["model"], it["recipe"], it["kl"]) for it in merged(before, again)]
    assert found == [("tiny-llava", "fp32", 1), ("tiny-llava", "q8_0", 2), ("tiny-mobilevlm", "default", 2)]


def test_models_with_one_vision_tower_share_features(tiny_llava):
    questions = questions_about(SEEDS[:2], HARD, tiny_llava)
    recipes = [RECIPES[name].fitted(tiny_llava.build_model(max_context_len=1)) for name in ("8da4w", "8da8w")]
    models = [loaded_model(tiny_llava, recipe, max_len=MAX_LEN) for recipe in recipes]
    features = Features(questions)
    first, second = (features.of(it.vision, model) for it, model in zip(recipes, models, strict=True))
    assert first is second
    assert torch.equal(image_features(models[1], questions[1]), first[1])
    assert len({vision_of(ENTRIES[name]) for name in NAMES}) == 3


def test_a_budget_is_kept(tiny_llava):
    shapes = tiny_llava.build_model(max_context_len=1)
    default = stored_bytes(DEFAULT.recipe.fitted(shapes), tiny_llava)
    recipe = fitted(next(it for it in entries.RECIPES if it.name == "budget"), tiny_llava)
    assert default < stored_bytes(recipe, tiny_llava) <= 1.05 * default
    assert recipe.exceptions


@pytest.mark.parametrize("quantization", ["q4_0", "q4_k_m", "q8_0"])
def test_rounded_weights_are_those_of_the_files(quantization, tiny_llava, tmp_path):
    prompt = find_prompt(tiny_llava)
    export_gguf(
        tiny_llava, quantization=quantization, mmproj_type="f16", prompt=prompt, output_dir=tmp_path, stages=Stages()
    )
    files = [GGUFReader(tmp_path / name) for name in (text_name(quantization), mmproj_name("f16"))]
    stored = {tensor.name: tensor for file in files for tensor in file.tensors}
    rounded = rounded_checkpoint(tiny_llava, quantization)
    assert stored_in_gguf(tiny_llava, quantization) == sum(tensor.n_bytes for tensor in stored.values())
    text, vision = planned_tensors(tiny_llava, quantization=quantization, mmproj_type="f16")
    for tensor in (*text, *vision):
        found = tensor.read(rounded.weights)
        values = dequantize(stored[tensor.name].data, tensor.kind).reshape(tensor.source.shape)
        assert torch.equal(tensor.in_gguf_order(found), torch.from_numpy(values.astype("float32"))), tensor.name
    q = next(it for it in text if it.name == "blk.1.attn_q.weight")
    assert not torch.equal(q.read(rounded.weights), q.read(tiny_llava.weights).float())
