"""Spends bytes where they matter: 8 bits for the linears of a decoder that lose the most by 4 bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from llava_export.calibration.calibrate import LINEARS
from llava_export.calibration.sensitivity import KlOf
from llava_export.errors import RecipeError
from llava_export.models.names import LM_HEAD, decoder_layer
from llava_export.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from llava_export.models.llava import LlavaModel

COARSE, FINE = "8da4w", "8da8w"


def least(recipe: Recipe, model: LlavaModel) -> Recipe:
    """Return the recipe with 4 bits for all linears of the decoder, fitted to a model.

    The head stays as the recipe says. If it says nothing, it has 4 bits, or 8 if these take no more: a head that is
    tied to the embedding can be stored with it. Raises ``RecipeError`` for a recipe whose decoder has no 4 bits.
    """
    if recipe.text != COARSE:
        raise RecipeError(
            f"a budget is spent on 8 bits instead of 4, and recipe {recipe.name} has no linears of 4 bits"
        )
    heads = [recipe.head] if recipe.head else [COARSE, FINE]
    choices = [replace(recipe, head=head).fitted(model) for head in heads]
    return min(choices, key=lambda choice: sum(choice.stored_bytes(model).values()))


def most(recipe: Recipe, model: LlavaModel) -> Recipe:
    """Return the recipe with 8 bits for all linears of the decoder, fitted to a model.

    The head has them, too, unless the recipe says otherwise.
    """
    algorithm = "mse" if recipe.calibrates else recipe.algorithm  # there is nothing left to calibrate
    head = recipe.head or FINE
    name = RECIPES[FINE].name
    return replace(recipe, name=name, text=FINE, head=head, algorithm=algorithm, exceptions={}).fitted(model)


def spent(coarse: Recipe, fine: Recipe, model: LlavaModel, kl: KlOf, *, room: int) -> Recipe:
    """Return a recipe between two: that of ``least``, with what takes at most ``room`` bytes more of that of ``most``.

    ``kl`` has the divergence that each linear of the decoder causes with 4 bits. With 8 bits it causes next to none.
    Those that save the most for a byte come first. One that does not fit any more is passed over.
    """
    coarse_bytes, fine_bytes = coarse.stored_bytes(model), fine.stored_bytes(model)
    costs = {fqn: fine_bytes[f"{fqn}.weight"] - coarse_bytes[f"{fqn}.weight"] for fqn in kl}
    costs = {fqn: cost for fqn, cost in costs.items() if cost > 0}
    chosen = []
    for fqn in sorted(costs, key=lambda fqn: kl[fqn] / costs[fqn], reverse=True):
        if costs[fqn] <= room:
            room -= costs[fqn]
            chosen.append(fqn)
    exceptions = {fqn: FINE for fqn in kl if fqn in chosen and fqn != LM_HEAD}
    return replace(coarse, head=fine.head if LM_HEAD in chosen else coarse.head, exceptions=exceptions)


def spent_text(recipe: Recipe, *, num_layers: int) -> str:
    """Return which linears of a decoder have 8 bits: "8 bits for 3 of 24 mlp.down_proj, and the head"."""
    counts = Counter(
        name for name in LINEARS for i in range(num_layers) if recipe.scheme(f"{decoder_layer(i)}.{name}") == FINE
    )
    parts = [f"{counts[name]} of {num_layers} {name}" for name in LINEARS if counts[name]]
    parts += ["the head"] if recipe.scheme(LM_HEAD) == FINE else []
    return f"8 bits for {', '.join(parts)}" if parts else "4 bits for all linears of the decoder"
