"""Recipes: what they quantize, how large the error is, and what they refuse."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.errors import RecipeError
from llava_export.models.llava import LlavaModel
from llava_export.pte.stamp.packing import pack
from llava_export.quantize import weights as quantize_weights
from llava_export.quantize.weights import CalibratedBlock
from llava_export.recipe import ALGORITHMS, CALIBRATED, GPTQ, RECIPES, Recipe, recipe_text
from llava_runner.contract import ModelCard
from tests.fuzz.card import CARD


@pytest.fixture(scope="module")
def model(checkpoint_of) -> LlavaModel:
    """A small random model with float weights."""
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    model = checkpoint.build_model(max_context_len=64)
    checkpoint.weights.fill(model, prefix="")
    return model


def quantized(model: LlavaModel, recipe: Recipe) -> LlavaModel:
    """Return a quantized copy of the model."""
    model, recipe = copy.deepcopy(model), recipe.fitted(model)
    for fqn, block in model.blocks():
        recipe.quantize(block, fqn=fqn)
    return model


def weights(model: LlavaModel) -> dict[str, Any]:
    """Return the weights of all linears and of the token embedding, by module.

    The type is Any, because quantized ones have torchao's attributes, too.
    """
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or name == "token_embedding"
    }


def bits_of(weight: Any) -> tuple[int, int] | None:
    """Return the bits of a quantized weight and the number of columns that share a scale, or None for a float one."""
    if type(weight) in (torch.Tensor, nn.Parameter):
        return None
    return {"torch.int4": 4, "torch.int8": 8}[str(weight.target_dtype)], weight.shape[1] // weight.scale.shape[1]


def expected_bits(name: str, weight: torch.Tensor, recipe: Recipe) -> Any:
    """Return what ``bits_of`` should return for the weight of this module."""
    if name == "token_embedding":
        return {4: (4, recipe.group_size), 8: (8, weight.shape[1]), 32: None}[recipe.embedding_bits]
    scheme = recipe.vision if name.startswith("vision_encoder") else recipe.text
    scheme = recipe.exceptions.get(name, scheme)
    if name == "text_decoder.lm_head" and recipe.head:
        scheme = recipe.head
    return {"8da4w": (4, recipe.group_size), "8da8w": (8, weight.shape[1]), "fp32": None}[scheme]


VARIED_RECIPES = [
    *RECIPES.values(),
    RECIPES["8da4w"].with_changes(group_size=64, embedding_bits=4, vision="8da4w", head="8da8w"),
    RECIPES["8da4w"].with_changes(embedding_bits=32, vision="fp32", algorithm="hqq", head="fp32"),
    RECIPES["8da4w"].with_changes(
        exceptions={
            "text_decoder.layers.1.mlp.down_proj": "8da8w",
            "text_decoder.layers.0.self_attn.o_proj": "fp32",
            "vision_encoder.vision_tower.layers.1.mlp.fc1": "8da4w",
        },
    ),
]


@pytest.mark.parametrize("recipe", VARIED_RECIPES, ids=str)
def test_every_linear_and_the_embedding_get_their_bits(recipe, model):
    recipe = recipe.fitted(model)
    found = {name: bits_of(weight) for name, weight in weights(quantized(model, recipe)).items()}
    assert found == {name: expected_bits(name, weight, recipe) for name, weight in weights(model).items()}


@pytest.mark.parametrize("recipe", VARIED_RECIPES, ids=str)
def test_stored_bytes_are_what_is_packed(recipe, model):
    recipe = recipe.fitted(model)
    stored = recipe.stored_bytes(model)
    packed = {
        name: sum(len(blob.data) for blob in pack(parameter))
        for name, parameter in quantized(model, recipe).named_parameters()
        if name != "token_embedding.weight"  # not in a delegate: ExecuTorch stores it in its own way
    }
    assert stored.keys() == {*packed, "token_embedding.weight"}
    assert {name: stored[name] for name in packed} == packed
    entries = model.token_embedding.weight.numel()
    scales = {4: 4 * entries // recipe.group_size, 8: 4 * len(model.token_embedding.weight), 32: 0}
    assert stored["token_embedding.weight"] == entries * recipe.embedding_bits // 8 + scales[recipe.embedding_bits]


def weight_error(model: LlavaModel, recipe: Recipe) -> float:
    """Return the mean relative error of the decoder's linears."""
    original, changed = weights(model), weights(quantized(model, recipe))
    names = [name for name in original if name.startswith("text_decoder")]
    errors = [float((changed[n].dequantize() - original[n]).norm() / original[n].norm()) for n in names]
    return sum(errors) / len(errors)


def test_more_bits_and_smaller_groups_are_nearer(model):
    recipe = RECIPES["8da4w"].with_changes(group_size=128)
    errors = [weight_error(model, r) for r in (recipe, recipe.with_changes(group_size=32), RECIPES["8da8w"])]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.15 and errors[2] < 0.015


@pytest.mark.parametrize("name", ["8da4w", "8da8w"])
def test_quantizing_some_rows_at_a_time_changes_nothing(name, model, monkeypatch):
    monkeypatch.setattr(quantize_weights, "ROWS_AT_ONCE", 50)  # divides no layer
    in_slices = weights(quantized(model, RECIPES[name]))
    monkeypatch.setattr(quantize_weights, "ROWS_AT_ONCE", 10**6)
    for fqn, weight in weights(quantized(model, RECIPES[name])).items():
        for part in weight.tensor_data_names:
            assert torch.equal(getattr(in_slices[fqn], part), getattr(weight, part)), (fqn, part)


def test_searched_scales_are_nearer_than_those_of_the_largest_magnitude(model):
    mse, minmax, hqq = (
        weight_error(model, RECIPES["8da4w"].with_changes(algorithm=algorithm))
        for algorithm in ("mse", "minmax", "hqq")
    )
    assert mse < 0.95 * minmax and hqq < minmax


def test_a_group_size_that_does_not_divide_names_the_layer_and_what_fits(model):
    with pytest.raises(RecipeError) as error:
        RECIPES["8da4w"].with_changes(group_size=256).check(model)
    assert str(error.value) == (
        "group size 256 does not divide the 384 input features of text_decoder.layers.0.mlp.down_proj "
        "(2 such layers); --group-size 32 or 64 or 128 fits"
    )


def test_the_group_size_matters_only_where_groups_are_used(model):
    with pytest.raises(RecipeError, match="vision_encoder"):
        RECIPES["8da4w"].with_changes(group_size=192, vision="8da4w").check(model)
    RECIPES["fp32"].with_changes(group_size=192).check(model)
    RECIPES["8da8w"].with_changes(group_size=256).check(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"group_size": 48},
        {"group_size": 0},
        {"embedding_bits": 5},
        {"vision": "int8"},
        {"algorithm": "kmeans"},
        {"head": "int4"},
        {"exceptions": {"text_decoder.layers.0.mlp.down_proj": "int8"}},
        {"exceptions": {"text_decoder.lm_head": "8da8w"}},
    ],
    ids=str,
)
def test_impossible_recipes_are_refused(changes):
    with pytest.raises(RecipeError):
        RECIPES["8da4w"].with_changes(**changes)


def test_thresholds_follow_the_coarsest_part():
    fp32, eight, four = (RECIPES[name].thresholds for name in ("fp32", "8da8w", "8da4w"))
    assert fp32.cosine > eight.cosine > four.cosine
    assert RECIPES["fp32"].with_changes(vision="8da4w").thresholds == four
    assert RECIPES["8da8w"].with_changes(embedding_bits=4).thresholds == four


def test_calibrated_programs_and_image_features_have_to_be_nearer():
    four, calibrated = RECIPES["8da4w"], RECIPES["8da4w"].with_changes(algorithm="awq-gptq")
    assert calibrated.thresholds.kl < four.thresholds.kl
    for part in ({"head": "8da4w"}, {"vision": "8da4w"}, {"embedding_bits": 4}):  # which no samples are read for
        assert calibrated.with_changes(**part).thresholds == four.thresholds
    assert four.feature_thresholds == RECIPES["8da8w"].thresholds
    assert four.with_changes(vision="8da4w").feature_thresholds == four.thresholds


@pytest.mark.parametrize(
    ("sizes", "group_size", "head"),
    [
        ({"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}, 128, "8da8w"),  # 7B
        ({"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}, 128, "8da4w"),  # 1.4B: 5 % more
        ({"hidden_size": 2112, "intermediate_size": 5632, "num_hidden_layers": 24}, 64, "8da4w"),
        ({"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24}, 32, "8da4w"),  # 0.4B
    ],
    ids=str,
)
def test_group_size_and_head_follow_from_the_model(sizes, group_size, head, checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": sizes["hidden_size"] // 16}
    text = replace(checkpoint.config.text, vocab_size=32000, **sizes, **heads)
    assert checkpoint.config.projector is not None
    projector = replace(checkpoint.config.projector, out_features=text.hidden_size)
    shapes = checkpoint.build_model(replace(checkpoint.config, text=text, projector=projector), max_context_len=1)
    fitted = RECIPES["8da4w"].fitted(shapes)
    assert (fitted.group_size, fitted.head) == (group_size, head)
    fitted.check(shapes)
    chosen = RECIPES["8da4w"].with_changes(group_size=96, head="fp32").fitted(shapes)
    assert (chosen.group_size, chosen.head) == (96, "fp32")


@pytest.mark.parametrize(
    ("changes", "head", "is_stored_once"),
    [
        ({}, "8da8w", True),
        ({"embedding_bits": 4}, "8da4w", False),
        ({"embedding_bits": 32}, "8da4w", False),
        ({"embedding_bits": 32, "head": "8da8w"}, "8da8w", False),
        ({"embedding_bits": 32, "head": "fp32"}, "fp32", True),
    ],
    ids=str,
)
def test_a_head_that_is_stored_with_the_embedding_costs_nothing(changes, head, is_stored_once, checkpoint_of):
    tied, untied = (
        open_checkpoint(str(checkpoint_of(name))).build_model(max_context_len=1) for name in ("tied_head", "plain")
    )
    assert RECIPES["8da4w"].fitted(untied).head == "8da4w"  # so it is the tie that makes 8 bits cheap
    recipe = RECIPES["8da4w"].with_changes(**changes).fitted(tied)
    assert recipe.head == head
    apart = recipe.stored_bytes(untied)
    assert apart["text_decoder.lm_head.weight"] > 0
    assert recipe.stored_bytes(tied) == apart | ({"text_decoder.lm_head.weight": 0} if is_stored_once else {})


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in CALIBRATED])  # which are for 4 bits
def test_a_tied_head_of_8_bits_is_the_embedding_to_the_last_bit(algorithm, model):
    tied = copy.deepcopy(model)
    tied.text_decoder.lm_head.weight.data = tied.token_embedding.weight.data.clone()
    found = weights(quantized(tied, RECIPES["8da8w"].with_changes(algorithm=algorithm)))
    head, embedding = (found[name] for name in ("text_decoder.lm_head", "token_embedding"))
    assert torch.equal(head.qdata, embedding.qdata) and torch.equal(head.scale, embedding.scale)


def test_calibrated_linears_are_taken_as_they_are():
    linear = nn.Linear(64, 8, bias=False)
    integers = torch.arange(-8, 8, dtype=torch.int8).repeat(32).view(8, 64)
    scales = torch.rand(8, 2)
    block: Any = nn.ModuleDict({"o_proj": linear})
    recipe = RECIPES["8da4w"].with_changes(group_size=32, algorithm=GPTQ)
    calibrated = CalibratedBlock(linears={"o_proj": (integers, scales)})
    recipe.quantize(block, fqn="text_decoder", calibrated=calibrated)
    found: Any = block["o_proj"].weight
    assert torch.equal(found.qdata, integers) and torch.equal(found.scale, scales)
    block["o_proj"] = nn.Linear(64, 8, bias=False, device="meta")  # what is given may be elsewhere than the block
    recipe.quantize(block, fqn="text_decoder", calibrated=calibrated)
    assert block["o_proj"].weight.is_meta


def test_a_package_of_before_has_a_head_like_its_other_linears():
    fields = RECIPES["8da4w"].with_changes(group_size=128).to_dict()
    del fields["head"]
    assert Recipe.from_dict(fields).head == "8da4w"


EXCEPTIONS = {"text_decoder.layers.0.mlp.down_proj": "8da8w", "text_decoder.layers.1.self_attn.qkv_proj": "8da8w"}


def test_exceptions_stand_in_the_card_and_a_recipe_without_any_does_not_mention_them(model):
    plain = RECIPES["8da4w"].fitted(model)
    recipe = plain.with_changes(exceptions=EXCEPTIONS)
    assert "exceptions" not in plain.to_dict() and Recipe.from_dict(plain.to_dict()) == plain
    assert recipe.to_dict()["exceptions"] == EXCEPTIONS
    card = replace(CARD, recipe=recipe.to_dict())
    assert ModelCard.from_json(card.to_json()) == card
    assert Recipe.from_dict(json.loads(card.to_json())["recipe"]) == recipe
    assert recipe_text(card.recipe) == recipe_text(plain.to_dict()) + ", 2 linears 8da8w"
    for wrong in ({"text_decoder.layers.0.mlp.down_proj": 8}, ["a"], "8da8w"):
        with pytest.raises(RecipeError, match="exceptions"):
            Recipe.from_dict(recipe.to_dict() | {"exceptions": wrong})


def test_exceptions_must_be_linears_of_the_model(model):
    for fqn in ("text_decoder.layers.2.mlp.down_proj", "text_decoder.norm", "layers.0.mlp.down_proj"):
        with pytest.raises(RecipeError, match=f"{fqn}.*no linear of the model"):
            RECIPES["8da4w"].with_changes(group_size=32, exceptions={fqn: "8da8w"}).check(model)
    eight = RECIPES["8da4w"].with_changes(
        group_size=256, exceptions={f"text_decoder.layers.{i}.mlp.down_proj": "8da8w" for i in range(2)}
    )
    eight.check(model)  # the 384 inputs of the others do not matter: they have a scale for each row


def test_the_coarsest_exception_decides_the_thresholds():
    coarser = RECIPES["8da8w"].with_changes(exceptions=dict.fromkeys(EXCEPTIONS, "8da4w"))
    assert coarser.thresholds == RECIPES["8da4w"].thresholds


def test_a_recipe_of_a_program_says_everything():
    with pytest.raises(RecipeError, match="does not say its head and group_size"):
        Recipe.from_dict(RECIPES["8da4w"].to_dict())
