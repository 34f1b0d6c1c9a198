"""Recipes: what they quantize, how large the error is, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from llava_export import recipe as recipe_module
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.errors import RecipeError
from llava_export.models.llava import LlavaModel
from llava_export.pte.stamp.packing import pack
from llava_export.recipe import RECIPES, Recipe


@pytest.fixture(scope="module")
def model(checkpoint_of) -> LlavaModel:
    """A small random model with float weights."""
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    model = checkpoint.build_model(max_context_len=64)
    checkpoint.weights.fill(model, prefix="")
    return model


def quantized(model: LlavaModel, recipe: Recipe) -> LlavaModel:
    """Return a quantized copy of the model."""
    model = copy.deepcopy(model)
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


def expected_bits(name: str, weight: torch.Tensor, recipe: Recipe) -> tuple[int, int] | None:
    """Return what ``bits_of`` should return for the weight of this module."""
    if name == "token_embedding":
        return (recipe.embedding_bits, recipe.group_size) if recipe.embedding_bits < 32 else None
    scheme = recipe.vision if name.startswith("vision_encoder") else recipe.text
    return {"8da4w": (4, recipe.group_size), "8da8w": (8, weight.shape[1]), "fp32": None}[scheme]


VARIED_RECIPES = [
    *RECIPES.values(),
    RECIPES["8da4w"].with_changes(group_size=32, embedding_bits=4, vision="8da4w"),
    RECIPES["8da4w"].with_changes(embedding_bits=32, vision="fp32", algorithm="hqq"),
]


@pytest.mark.parametrize("recipe", VARIED_RECIPES, ids=str)
def test_every_linear_and_the_embedding_get_their_bits(recipe, model):
    found = {name: bits_of(weight) for name, weight in weights(quantized(model, recipe)).items()}
    assert found == {name: expected_bits(name, weight, recipe) for name, weight in weights(model).items()}


@pytest.mark.parametrize("recipe", VARIED_RECIPES, ids=str)
def test_stored_bytes_are_what_is_packed(recipe, model):
    stored = recipe.stored_bytes(model)
    packed = {
        name: sum(len(blob.data) for blob in pack(parameter))
        for name, parameter in quantized(model, recipe).named_parameters()
        if name != "token_embedding.weight"  # not in a delegate: ExecuTorch stores it in its own way
    }
    assert stored.keys() == {*packed, "token_embedding.weight"}
    assert {name: stored[name] for name in packed} == packed
    entries = model.token_embedding.weight.numel()
    scales = 4 * entries // recipe.group_size if recipe.embedding_bits < 32 else 0
    assert stored["token_embedding.weight"] == entries * recipe.embedding_bits // 8 + scales


def weight_error(model: LlavaModel, recipe: Recipe) -> float:
    """Return the mean relative error of the decoder's linears."""
    original, changed = weights(model), weights(quantized(model, recipe))
    names = [name for name in original if name.startswith("text_decoder")]
    errors = [float((changed[n].dequantize() - original[n]).norm() / original[n].norm()) for n in names]
    return sum(errors) / len(errors)


def test_more_bits_and_smaller_groups_are_nearer(model):
    recipe = RECIPES["8da4w"]
    errors = [weight_error(model, r) for r in (recipe, recipe.with_changes(group_size=32), RECIPES["8da8w"])]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.15 and errors[2] < 0.015


@pytest.mark.parametrize("name", ["8da4w", "8da8w"])
def test_quantizing_some_rows_at_a_time_changes_nothing(name, model, monkeypatch):
    monkeypatch.setattr(recipe_module, "ROWS_AT_ONCE", 50)  # divides no layer
    in_slices = weights(quantized(model, RECIPES[name]))
    monkeypatch.setattr(recipe_module, "ROWS_AT_ONCE", 10**6)
    for fqn, weight in weights(quantized(model, RECIPES[name])).items():
        for part in weight.tensor_data_names:
            assert torch.equal(getattr(in_slices[fqn], part), getattr(weight, part)), (fqn, part)


def test_hqq_is_nearer_than_minmax(model):
    recipe = RECIPES["8da4w"]
    assert weight_error(model, recipe.with_changes(algorithm="hqq")) < weight_error(model, recipe)


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
    [{"group_size": 48}, {"group_size": 0}, {"embedding_bits": 5}, {"vision": "int8"}, {"algorithm": "gptq"}],
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
