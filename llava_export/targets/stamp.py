"""Lower a template, stamp the layers: an export whose cost of lowering does not depend on the number of layers.

A template is the model with three layers a stack and random weights of the real shapes. It is lowered in the ordinary
way; then its middle layer is copied in the lowered graph for every further layer, and the real weights, packed by
``packing``, take the place of the random ones: in delegates by their keys, among the program's own constants by name.
So weights pass through neither ``torch.export`` nor lowering, and are needed one block at a time.

The result is the ordinary program, its operations perhaps in another order: to the last bit the same output. What that
rests on is checked by ``template`` and ``repeat`` before a real weight is read, and ``StampError`` raised if it fails.
A method whose layers XNNPACK takes all into one delegate, or that reads the hidden states of several layers, is lowered
with all of them, and gets only its weights in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from executorch.exir import EdgeProgramManager
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor

from llava_export.config import TEMPLATE_LAYERS, LlavaConfig
from llava_export.models.llava import LlavaModel
from llava_export.recipe import Recipe
from llava_export.targets import pte
from llava_export.targets.packing import Blob, pack
from llava_export.targets.stamped_graph import StampedGraph
from llava_export.targets.template import Slot, StampError, Template, read_template
from llava_runner import contract
from llava_runner.contract import ModelCard

__all__ = ["PackedWeights", "StampError", "lower_templates", "stamp"]

INT4_RANGE, INT8_RANGE = (-8, 8), (-127, 128)
STACKED_METHODS = (contract.VISION_ENCODER, contract.TEXT_DECODER)

Builder = Callable[[LlavaConfig], LlavaModel]  # a model on the meta device


class PackedWeights:
    """The real weights in the form that stamping needs: packed those in delegates, as they are the program's own.

    The packed ones wait in files in ``folder``, until the program that is made of them has been written.
    """

    def __init__(self, graphs: Mapping[str, StampedGraph], *, folder: Path) -> None:
        self._folder = folder
        self._packed: dict[str, tuple[Blob, ...] | None] = {}
        self._constants: dict[str, Tensor | None] = {}
        for method, graph in graphs.items():
            self._packed |= {f"{method}.{fqn}": None for fqn in graph.delegated_parameters()}
            self._constants |= {f"{method}.{fqn}": None for fqn in graph.constant_parameters()}

    def take(self, block: nn.Module, *, fqn: str) -> None:
        """Keep what is needed of a block's parameters; they may be dropped afterwards."""
        for path, parameter in block.named_parameters():
            name = f"{fqn}.{path}"
            if name in self._packed:
                self._packed[name] = tuple(blob.stored_in(self._folder) for blob in pack(parameter))
            if name in self._constants:
                self._constants[name] = parameter

    def blob(self, method: str, slot: Slot) -> Blob:
        blobs = self._packed[f"{method}.{slot.fqn}"]
        assert blobs is not None, f"{slot.fqn} was never taken"
        return blobs[slot.index]

    def constant(self, method: str, fqn: str) -> Tensor:
        tensor = self._constants[f"{method}.{fqn}"]
        assert tensor is not None, f"{fqn} was never taken"
        return tensor


def lower_templates(
    build: Builder,
    *,
    config: LlavaConfig,
    recipe: Recipe,
    card: ModelCard,
    partitioners: int,
    note: Callable[[str], None],
) -> dict[str, StampedGraph]:
    """The two methods with layers, ready for their weights; ``note`` takes what the user should know.

    Raises ``StampError``.
    """
    graphs = {}
    for method in STACKED_METHODS:
        lower = partial(_lower_template, method, build, recipe=recipe, card=card, partitioners=partitioners)
        short, extra_layers = _shortened(config, method)
        template = lower(short)
        if extra_layers > 0 and template.repeat is None:
            note(f"{method} has no layers that repeat once it is lowered, so all of them are lowered")
            template, extra_layers = lower(config), 0
        graphs[method] = StampedGraph(template, extra_layers=extra_layers)
    return graphs


def stamp(
    graphs: Mapping[str, StampedGraph], weights: PackedWeights, *, embedding: EdgeProgramManager, card: ModelCard
) -> EdgeProgramManager:
    """The whole program, as ``pte.lower`` would have made it; ``embedding`` is its method without layers, lowered."""
    methods = {
        method: graph.stamp(blob_of=partial(weights.blob, method), constant_of=partial(weights.constant, method))
        for method, graph in graphs.items()
    }
    methods[contract.TOKEN_EMBEDDING] = embedding.exported_program(contract.TOKEN_EMBEDDING)
    return pte.program_of(methods, card=card)


def _lower_template(
    method: str, build: Builder, config: LlavaConfig, *, recipe: Recipe, card: ModelCard, partitioners: int
) -> Template:
    model = build(config)
    for fqn, block in model.blocks():
        if fqn.startswith(f"{method}."):
            # Only the layout counts: any algorithm gives the same.
            recipe.with_changes(algorithm="minmax").quantize(block, fqn=fqn)
            _randomize(block)
    exported = pte.export_methods(model, max_seq_len=card.max_seq_len, names=[method])
    lowered = pte.lower(exported, card=card, partitioners=partitioners)
    parameters = dict(model.get_submodule(method).named_parameters())
    return read_template(lowered.exported_program(method), parameters=parameters)


def _shortened(config: LlavaConfig, method: str) -> tuple[LlavaConfig, int]:
    """The config of the template, and how many layers it leaves out."""
    if method == contract.TEXT_DECODER and config.text.num_hidden_layers > TEMPLATE_LAYERS:
        text = replace(config.text, num_hidden_layers=TEMPLATE_LAYERS)
        return replace(config, text=text), config.text.num_hidden_layers - TEMPLATE_LAYERS
    # With several feature layers the last one is not the only one that is read.
    (*others, last) = config.vision.feature_layers
    if method == contract.VISION_ENCODER and last > TEMPLATE_LAYERS and not others:
        vision = replace(config.vision, feature_layers=(TEMPLATE_LAYERS,))
        return replace(config, vision=vision), last - TEMPLATE_LAYERS
    return config, 0


def _randomize(block: nn.Module) -> None:
    """Give the parameters of a block on the meta device, perhaps quantized, values that differ from all others'."""
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_random_like(parameter), requires_grad=False))


def _random_like(parameter: Tensor) -> Tensor:
    if not isinstance(parameter, IntxUnpackedToInt8Tensor):
        return torch.rand(parameter.shape)
    four_bits = parameter.target_dtype == torch.int4  # type: ignore[attr-defined]  # torch's stubs lack int4
    return IntxUnpackedToInt8Tensor(
        torch.randint(*(INT4_RANGE if four_bits else INT8_RANGE), parameter.qdata.shape, dtype=torch.int8),
        torch.rand(parameter.scale.shape),
        torch.zeros(parameter.zero_point.shape, dtype=parameter.zero_point.dtype),
        parameter.target_dtype,
        parameter.block_size,
        parameter.dtype,
        parameter.activation_quantization,
    )
