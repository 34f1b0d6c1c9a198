"""Calibrates a decoder with GPTQ: layer by layer, and within a layer linear by linear.

Two models read the samples side by side: the float model, and one whose linears are rounded as soon as all samples have
reached them. The samples wait in front of each linear. So a linear is rounded for the inputs that it will really get,
and each model computes each linear once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava_export.calibration.data import calibration_rows, num_steps
from llava_export.calibration.samples import Sample
from llava_export.calibration.store import LayerStore
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.prompt import Prompt
from llava_export.models.llama import LlamaLayer
from llava_export.quantize.gptq import gptq
from llava_export.quantize.weights import QuantizedLinears, dequantized, round_inputs
from llava_export.recipe import Recipe
from llava_export.stages import Stages
from llava_export.staging import fingerprint
from llava_export.streams import DecoderBlocks, Stream

FORMAT = 1  # of the layers in a store, and of how they are computed
# The linears of a layer in the order in which they are computed.
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


def calibrate_with(
    samples: Sequence[Sample],
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    prompt: Prompt,
    max_len: int,
    limit: int | None,
    folder: Path,
    device: str,
    stages: Stages,
) -> LayerStore:
    """Read at most ``limit`` samples, all if it is None, and quantize the decoder's layers for them. Return the layers.

    They wait in ``folder``, and stay there if this is stopped, so that it can go on. ``max_len`` is the most positions
    that a sample has. Raises a ``UserError`` for samples that cannot be used.
    """
    with stages.stage("read samples", steps=num_steps(checkpoint, samples, limit=limit)) as step:
        rows = calibration_rows(
            checkpoint,
            samples,
            prompt=prompt,
            max_len=max_len,
            embed=DecoderBlocks(checkpoint, max_len=1).embed,
            limit=limit,
            on_step=step,
            on_note=stages.note,
        )
    store = LayerStore(folder, key=calibration_key(checkpoint, recipe, rows))
    with stages.stage("calibrate", steps=checkpoint.config.text.num_hidden_layers) as step:
        calibrate(checkpoint, recipe, rows, store=store, device=device, on_step=step)
    return store


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    rows: Sequence[Tensor],
    *,
    store: LayerStore,
    device: str = "cpu",
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Quantize the linears of every decoder layer, and put them into ``store``. Layers that it has are kept.

    ``rows`` are what the decoder reads of each sample, ``float32 [1, T, D]``. ``device`` is torch's name of what
    computes. ``on_step`` is called after each layer.
    """
    longest = max(sample.shape[1] for sample in rows)
    float_blocks, blocks = (
        DecoderBlocks(checkpoint, max_len=longest, recipe=chosen, device=device) for chosen in (None, recipe)
    )
    rows = [sample.to(device) for sample in rows]
    floats, rounded = (Stream(rows, decoder=model.decoder) for model in (float_blocks, blocks))
    for index, fqn in enumerate(float_blocks.layers):
        found = store.load(fqn)
        float_layer: Any = float_blocks.decoder.layers[index]
        layer: Any = blocks.decoder.layers[index]
        with float_blocks.loaded(fqn):
            _share_weights(float_layer, layer)
            layer.to(device)  # what is no parameter
            result = _pass_layer(float_layer, layer, floats, rounded, recipe=recipe, found=found)
            checkpoint.weights.release(layer)
        if found is None:
            store.save(fqn, result)
        on_step()


def calibration_key(checkpoint: Checkpoint, recipe: Recipe, rows: Sequence[Tensor]) -> str:
    """Return a digest of all that a calibration depends on: the checkpoint's files, the recipe and the samples."""
    files = {str(path): fingerprint(path) for path in checkpoint.paths}
    digest = hashlib.sha256(json.dumps([FORMAT, files, recipe.to_dict()], sort_keys=True).encode())
    for sample in rows:
        digest.update(sample.contiguous().numpy().data)
    return digest.hexdigest()


def linear_inputs(layer: LlamaLayer, x_1TD: Tensor, positions: tuple[Tensor, Tensor, int]) -> Iterator[Tensor]:
    """Yield what each of ``LINEARS`` reads in a layer, and at last the rows ``[1, T, D]`` that the layer returns.

    A linear is computed when the next value is asked for, with the weight that it has then. ``positions`` are the
    arguments of the layer's ``forward`` behind the rows.
    """
    read = layer.input_layernorm(x_1TD)
    yield read
    read = layer.self_attn.attended(read, *positions)
    yield read
    x_1TD = x_1TD + layer.self_attn.o_proj(read)
    read = layer.post_attention_layernorm(x_1TD)
    yield read
    read = layer.mlp.gated(read)
    yield read
    yield x_1TD + layer.mlp.down_proj(read)


@torch.no_grad()
def _pass_layer(
    float_layer: LlamaLayer,
    layer: LlamaLayer,
    floats: Stream,
    rounded: Stream,
    *,
    recipe: Recipe,
    found: QuantizedLinears | None,
) -> QuantizedLinears:
    """Move both streams through a layer, and quantize the linears of ``layer`` on the way. Return them.

    Both layers begin with the float weights. ``found`` has the linears if they were quantized before.
    """
    assert recipe.group_size is not None, "the recipe was not fitted to a model"
    waiting = [
        (linear_inputs(float_layer, y, floats.positions(y)), linear_inputs(layer, x, rounded.positions(x)))
        for y, x in zip(floats.rows, rounded.rows, strict=True)
    ]
    result = {}
    for name in LINEARS:
        linear: Any = layer.get_submodule(name)
        inputs = [(next(of_float)[0], round_inputs(next(of_rounded)[0])) for of_float, of_rounded in waiting]
        if found is None:
            integers, scales = gptq(linear.weight, *_sums(inputs), group_size=recipe.group_size)
        else:
            integers, scales = (tensor.to(linear.weight.device) for tensor in found[name])
        del inputs
        result[name] = integers.cpu(), scales.cpu()
        linear.weight = nn.Parameter(dequantized(integers, scales), requires_grad=False)
        linear.register_forward_pre_hook(lambda _, inputs: (round_inputs(inputs[0]),))
    floats.rows, rounded.rows = (list(rows) for rows in zip(*((next(y), next(x)) for y, x in waiting), strict=True))
    return result


def _sums(inputs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the sums of ``x x^T`` and of ``(y - x) x^T`` over all rows of pairs ``(y, x)``, ``[T, I]`` each."""
    hessian_II = drift_II = torch.zeros(())
    for y_TI, x_TI in inputs:
        if not hessian_II.dim():
            hessian_II, drift_II = (x_TI.new_zeros(x_TI.shape[1], x_TI.shape[1]) for _ in range(2))
        hessian_II.addmm_(x_TI.T, x_TI)
        drift_II.addmm_((y_TI - x_TI).T, x_TI)
    return hessian_II, drift_II


def _share_weights(source: nn.Module, target: nn.Module) -> None:
    """Give a layer the parameters of another one of the same shape."""
    for path, module in source.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(target.get_submodule(path), name, parameter)
