"""How much each linear of a decoder loses by being quantized: the divergence that it alone causes.

A variant is the float model with few linears quantized by the recipe. Its output is compared with the float model's by
the Kullback-Leibler divergence of the next token. All variants advance together, so each layer's weights are read once.

A small decoder gets a variant for each linear. In a large one that would take hours. It gets a variant for each layer,
with all its linears, and one for each kind of linear, with those of all layers. The divergence of a layer is divided
among its linears. Their shares begin as the errors that each alone causes in what the layer returns, relative to the
hidden state, since a norm is what reads it. The errors of the linears' own outputs could not be compared: they are of
different kinds. Then the shares are scaled until they add up to the divergences of the layers and of the kinds:
"iterative proportional fitting" (Deming and Stephan, 1940). Without the kinds, ``mlp.down_proj`` of the built-in models
would get three times what it causes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llava_export.calibration.calibrate import LINEARS
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.models.names import LM_HEAD
from llava_export.quantize.weights import simulate
from llava_export.recipe import Recipe
from llava_export.streams import DecoderBlocks, Head, Stream

SAMPLES = 8
LONGEST_TEXT = 192  # positions of a sample besides those of its image
POSITIONS = 64  # at the end of a sample, where the answer is: those that are compared
# Decoders of fewer parameters get a variant for each linear.
SMALL_DECODER = 100_000_000
FITTING_STEPS = 20
TINY = 1e-300  # in place of a sum that is 0, and that nothing can be divided by

KlOf = dict[str, float]  # of linears, by their names in the model, in nats


def measure(
    checkpoint: Checkpoint,
    recipe: Recipe,
    rows: Sequence[Tensor],
    *,
    by_linear: bool | None = None,
    device: str = "cpu",
    on_step: Callable[[], None] = lambda: None,
) -> KlOf:
    """Return the divergence that each linear of the decoder causes when the recipe quantizes it alone.

    ``rows`` are what the decoder reads of each sample, ``float32 [1, T, D]``. ``by_linear`` is False to divide that of
    a whole layer; None leaves the choice to the decoder's size. ``device`` is torch's name of what computes.
    ``on_step`` is called ``num_steps`` times.
    """
    blocks = DecoderBlocks(checkpoint, max_len=max(sample.shape[1] for sample in rows), device=device)
    if by_linear is None:
        by_linear = sum(parameter.numel() for parameter in blocks.decoder.parameters()) < SMALL_DECODER
    floats = Stream([sample.to(device) for sample in rows], decoder=blocks.decoder)
    kinds = () if by_linear else LINEARS
    variants = {name: Stream(floats.rows, decoder=blocks.decoder) for name in kinds}
    errors: KlOf = {}
    for fqn in blocks.layers:
        with blocks.loaded(fqn) as layer:
            before = floats.rows
            floats = Stream(before, decoder=blocks.decoder)
            for stream in (floats, *(stream for name, stream in variants.items() if name not in kinds)):
                stream.advance(layer)
            for name in LINEARS:
                alone = Stream(before, decoder=blocks.decoder)
                with _quantized(layer, (name,), recipe, fqn=fqn):
                    alone.advance(layer)
                    if name in kinds:
                        variants[name].advance(layer)
                if by_linear:
                    variants[f"{fqn}.{name}"] = alone
                else:
                    errors[f"{fqn}.{name}"] = _error(alone, floats)
            if not by_linear:
                variants[fqn] = Stream(before, decoder=blocks.decoder)
                with _quantized(layer, LINEARS, recipe, fqn=fqn):
                    variants[fqn].advance(layer)
        on_step()
    with blocks.head() as head, DecoderBlocks(checkpoint, max_len=1, recipe=recipe, device=device).head() as quantized:
        found = _divergences(floats, variants, head, quantized)
    on_step()
    return found if by_linear else {**_divided(found, errors, blocks.layers), LM_HEAD: found[LM_HEAD]}


def num_steps(checkpoint: Checkpoint) -> int:
    """Return how often ``measure`` calls ``on_step``."""
    return checkpoint.config.text.num_hidden_layers + 1


@contextmanager
def _quantized(layer: nn.Module, names: Sequence[str], recipe: Recipe, *, fqn: str) -> Iterator[None]:
    """Quantize some linears of a layer with float weights while the ``with`` block runs."""
    linears: list[Any] = [layer.get_submodule(name) for name in names]
    weights = [linear.weight for linear in linears]
    hooks = []
    for name, linear in zip(names, linears, strict=True):
        recipe.quantize(linear, fqn=f"{fqn}.{name}")
        hooks.append(simulate(linear, linear.weight.dequantize()))
    try:
        yield
    finally:
        for linear, weight, hook in zip(linears, weights, hooks, strict=True):
            linear.weight = weight
            hook.remove()


def _error(stream: Stream, expected: Stream) -> float:
    """Return the sum of all positions' squared errors, each relative to the square of the position's hidden state."""
    pairs = zip(stream.rows, expected.rows, strict=True)
    return sum(float(((x - y).square().sum(-1) / y.square().sum(-1)).sum()) for x, y in pairs)


@torch.no_grad()
def _divergences(floats: Stream, variants: dict[str, Stream], head: Head, quantized_head: Head) -> KlOf:
    """Return the mean divergence of each variant, and of the float model with a quantized head."""
    sums = dict.fromkeys([*variants, LM_HEAD], 0.0)
    compared = 0
    for i, x_1TD in enumerate(floats.rows):
        last_1TD = x_1TD[:, -POSITIONS:]
        expected = _log_probabilities(head, last_1TD)
        compared += len(expected)
        sums[LM_HEAD] += _sum_of_kl(expected, _log_probabilities(quantized_head, last_1TD))
        for name, stream in variants.items():
            sums[name] += _sum_of_kl(expected, _log_probabilities(head, stream.rows[i][:, -POSITIONS:]))
    # A divergence is never negative. Rounding may make one of nearly 0 so.
    return {name: max(total / compared, 0.0) for name, total in sums.items()}


def _log_probabilities(head: Head, x_1TD: Tensor) -> Tensor:
    """Return ``[T, V]``, in float64: the divergence of one linear can be smaller than what float32 resolves."""
    return head.logits(x_1TD).double().log_softmax(-1)


def _sum_of_kl(expected: Tensor, found: Tensor) -> float:
    return float((expected.exp() * (expected - found)).sum())


def _divided(found: KlOf, errors: KlOf, layers: Sequence[str]) -> KlOf:
    """Return the divergence of each linear, of which ``errors`` has the first guess.

    ``found`` has the divergences of layers and of kinds of linears. Those of the kinds count in relation to each other.
    """
    guess_LK = torch.tensor([[errors[f"{fqn}.{name}"] for name in LINEARS] for fqn in layers], dtype=torch.float64)
    of_layer_L1 = torch.tensor([[found[fqn]] for fqn in layers], dtype=torch.float64)
    of_kind_K = torch.tensor([found[name] for name in LINEARS], dtype=torch.float64)
    of_kind_K *= of_layer_L1.sum() / of_kind_K.sum().clamp_min(TINY)
    for _ in range(FITTING_STEPS):
        guess_LK *= of_kind_K / guess_LK.sum(0).clamp_min(TINY)
        guess_LK *= of_layer_L1 / guess_LK.sum(1, keepdim=True).clamp_min(TINY)
    return {
        f"{fqn}.{name}": value
        for fqn, row in zip(layers, guess_LK.tolist(), strict=True)
        for name, value in zip(LINEARS, row, strict=True)
    }
