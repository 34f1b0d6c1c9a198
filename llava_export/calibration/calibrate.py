"""Calibrates a decoder: layer by layer, and within a layer linear by linear.

Two models read the samples side by side: the float model, and one whose linears are rounded as soon as all samples have
reached them. So a linear is rounded for the inputs that it will really get.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava_export.calibration.data import read_samples
from llava_export.calibration.samples import Sample
from llava_export.calibration.store import LayerStore
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.prompt import Prompt
from llava_export.errors import CalibrationError
from llava_export.models.llama import LlamaLayer
from llava_export.quantize.awq import input_factors, rounded_for_inputs
from llava_export.quantize.gptq import gptq
from llava_export.quantize.weights import CalibratedBlock, dequantized, round_inputs, simulate
from llava_export.recipe import AWQ, AWQ_GPTQ, SCHEME_BITS, Recipe
from llava_export.stages import Stages
from llava_export.staging import fingerprint
from llava_export.streams import DecoderBlocks, Stream

# Of values between the linears of a layer, for each of two models: they need not be computed again.
KEPT_BYTES = 256 << 20
FORMAT = 3  # of the layers in a store, and of how they are computed
# The linears of a layer in the order in which they are computed.
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
# The norms that linears read from.
NORMS = {"self_attn.qkv_proj": "input_layernorm", "mlp.gate_up_proj": "post_attention_layernorm"}


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
    key = calibration_key(checkpoint, recipe, samples, prompt=prompt, max_len=max_len, limit=limit, device=device)
    rows = read_samples(samples, checkpoint, prompt=prompt, max_len=max_len, limit=limit, stages=stages)
    store = LayerStore(folder, key=key)
    with stages.stage("calibrate", steps=checkpoint.config.text.num_hidden_layers) as step:
        calibrate(checkpoint, recipe, rows, store=store, device=device, on_step=step)
    return store


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    rows: list[Tensor],
    *,
    store: LayerStore,
    device: str = "cpu",
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Quantize the linears of every decoder layer, and put them into ``store``. Layers that it has are kept.

    ``rows`` are what the decoder reads of each sample, ``float32 [1, T, D]``. The list is emptied, so that they do not
    stay in memory. ``device`` is torch's name of what computes. ``on_step`` is called after each layer.
    """
    longest = max(sample.shape[1] for sample in rows)
    float_blocks, blocks = (
        DecoderBlocks(checkpoint, max_len=longest, recipe=chosen, device=device) for chosen in (None, recipe)
    )
    moved = [sample.to(device) for sample in rows]
    rows.clear()
    floats, rounded = (Stream(moved, decoder=model.decoder) for model in (float_blocks, blocks))
    del moved
    for index, fqn in enumerate(float_blocks.layers):
        found = store.load(fqn)
        float_layer: Any = float_blocks.decoder.layers[index]
        layer: Any = blocks.decoder.layers[index]
        with float_blocks.loaded(fqn):
            _share_weights(float_layer, layer)
            layer.to(device)  # what is no parameter
            readers = LayerReader(float_layer, floats), LayerReader(layer, rounded)
            result = _pass_layer(*readers, fqn=fqn, recipe=recipe, found=found)
            checkpoint.weights.release(layer)
        if found is None:
            store.save(fqn, result)
        on_step()


def calibration_key(
    checkpoint: Checkpoint,
    recipe: Recipe,
    samples: Sequence[Sample],
    *,
    prompt: Prompt,
    max_len: int,
    limit: int | None,
    device: str,
) -> str:
    """Return a digest of all that a calibration depends on: the checkpoint's files, recipe, samples and device.

    What the model computes of the samples is not in it: its last bits differ from run to run on some machines.
    """
    # Nothing of a checkpoint is in a deeper folder, where an export may be at work.
    found = (file for path in checkpoint.paths for file in ([path] if path.is_file() else path.iterdir()))
    files = {str(file): fingerprint(file) for file in sorted(found) if file.is_file()}
    depends_on: list[Any] = [FORMAT, files, recipe.to_dict(), repr(prompt.chat), max_len, limit, device]
    for sample in samples:
        image = [str(sample.image), fingerprint(sample.image)] if sample.image else None
        ids = None if sample.ids is None else sample.ids.tolist()
        depends_on.append([image, sample.question, sample.answer, ids])
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


class LayerReader:
    """Reads a layer of the decoder for all sequences of a stream, one linear after the other.

    A linear has the weight that it has at that time. What ``mlp.down_proj`` reads is kept for the first sequences, up
    to ``KEPT_BYTES``, and computed once more for the others.
    """

    def __init__(self, layer: LlamaLayer, stream: Stream) -> None:
        self.layer = layer
        self._stream = stream
        self._read: list[Tensor] = []  # what the linear read that comes next, of all sequences or the first

    def inputs(self, name: str) -> Iterator[Tensor]:
        """Yield what the linear ``name``, one of ``LINEARS``, reads for each sequence: ``[1, T, in_features]``."""
        attention, mlp = self.layer.self_attn, self.layer.mlp
        kept_bytes = 0
        for x_1TD in self._stream.rows:
            if name == "self_attn.qkv_proj":
                yield self.layer.input_layernorm(x_1TD)
            elif name == "self_attn.o_proj":
                read = self.layer.input_layernorm(x_1TD)
                self._read.append(attention.attended(read, *self._stream.positions(x_1TD)))
                yield self._read[-1]
            elif name == "mlp.gate_up_proj":
                yield self.layer.post_attention_layernorm(x_1TD)
            else:
                gated = mlp.gated(self.layer.post_attention_layernorm(x_1TD))
                kept_bytes += gated.nbytes
                if kept_bytes <= KEPT_BYTES:
                    self._read.append(gated)
                yield gated

    def add(self, name: str) -> None:
        """Add to the rows what the layer adds behind the linear ``name``, if anything. ``inputs`` were read before."""
        rows = self._stream.rows
        if name == "self_attn.o_proj":
            for i, attended in enumerate(self._read):
                rows[i] = rows[i] + self.layer.self_attn.o_proj(attended)
            self._read.clear()
        elif name == "mlp.down_proj":
            mlp = self.layer.mlp
            for i, x_1TD in enumerate(rows):
                is_kept = i < len(self._read)
                gated = self._read[i] if is_kept else mlp.gated(self.layer.post_attention_layernorm(x_1TD))
                rows[i] = x_1TD + mlp.down_proj(gated)
            self._read.clear()


@torch.no_grad()
def _pass_layer(
    float_reader: LayerReader, reader: LayerReader, *, fqn: str, recipe: Recipe, found: CalibratedBlock | None
) -> CalibratedBlock:
    """Move both readers' streams through a layer, and quantize the linears of the second. Return those of 4 bits.

    Both layers begin with the float weights. ``fqn`` is the layer's name, and ``found`` is returned if there is one. A
    linear that the recipe gives another scheme is quantized without data.
    """
    result = found or CalibratedBlock()
    for name, weight in result.norms.items():
        _set_weight(reader.layer.get_submodule(name), weight)
    for name in LINEARS:
        linear: Any = reader.layer.get_submodule(name)
        bits = SCHEME_BITS[recipe.scheme(f"{fqn}.{name}")]
        inputs = zip(float_reader.inputs(name), map(round_inputs, reader.inputs(name)), strict=True)
        if bits == 4 and found is None:
            hessian_II, drift_II = _sums(inputs)
            if not (hessian_II.isfinite().all() and drift_II.isfinite().all()):
                raise CalibrationError(f"{fqn}.{name} reads NaN or infinity for the samples")
            _calibrate_linear(name, reader.layer, hessian_II, drift_II, recipe=recipe, result=result)
        elif name == "self_attn.o_proj":
            for _ in inputs:  # the readers need them
                pass
        if bits == 4:
            simulate(linear, dequantized(*(it.to(linear.weight.device) for it in result.linears[name])))
        elif bits == 8:
            recipe.quantize(linear, fqn=f"{fqn}.{name}")
            simulate(linear, linear.weight.dequantize())
        for each in (float_reader, reader):
            each.add(name)
    return result


def _calibrate_linear(
    name: str, layer: LlamaLayer, hessian_II: Tensor, drift_II: Tensor, *, recipe: Recipe, result: CalibratedBlock
) -> None:
    """Quantize a linear of a layer, and put it into ``result``. ``_sums`` has the other arguments."""
    assert recipe.group_size is not None, "the recipe was not fitted to a model"
    linear: Any = layer.get_submodule(name)
    weight_OI = linear.weight
    if recipe.algorithm in (AWQ, AWQ_GPTQ) and name in NORMS:
        norm: Any = layer.get_submodule(NORMS[name])
        factors_I = input_factors(weight_OI, hessian_II, group_size=recipe.group_size)
        _set_weight(norm, norm.weight / factors_I)
        result.norms[NORMS[name]] = norm.weight.detach().cpu()
        weight_OI = weight_OI * factors_I
        hessian_II, drift_II = (sums / factors_I[:, None] / factors_I for sums in (hessian_II, drift_II))
    if recipe.algorithm == AWQ:
        integers, scales = rounded_for_inputs(weight_OI, hessian_II.diagonal(), group_size=recipe.group_size)
    else:
        integers, scales = gptq(weight_OI, hessian_II, drift_II, group_size=recipe.group_size)
    result.linears[name] = integers.cpu(), scales.cpu()


def _set_weight(module: Any, weight: Tensor) -> None:
    """Give a module another weight. The modules that shared the old one keep it."""
    module.weight = nn.Parameter(weight.to(module.weight.device), requires_grad=False)


def _sums(inputs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the sums of ``x x^T`` and of ``(y - x) x^T`` over all rows of pairs ``(y, x)``, ``[1, T, I]`` each."""
    hessian_II = drift_II = torch.zeros(())
    for y_1TI, x_1TI in inputs:
        y_TI, x_TI = y_1TI[0], x_1TI[0]
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
