"""Stamps a program: lowers templates, packs the real weights, and stamps the layers.

The templates are lowered in the ordinary way. Then the middle layer is copied in the lowered graph for every further
layer, and the packed real weights replace the random ones: in delegates by their keys, and among the program's own
constants by their names. So real weights pass through neither ``torch.export`` nor lowering, and only one block of them
is needed at a time.

The result is the program that ordinary lowering makes, but its operations may be in another order. It gives the same
output to the last bit. ``template`` and ``repeat`` check that stamping is possible before a real weight is read, and
raise ``StampError`` if it is not.

A method is lowered with all its layers, and only its weights are replaced, in two cases: if XNNPACK takes all layers
into one delegate, or if the model reads the hidden states of several layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor

from llava_export.config import TEMPLATE_LAYERS, LlavaConfig
from llava_export.models.llava import LlavaModel
from llava_export.models.names import is_in
from llava_export.pte.lower import Lowered, export_methods, lower, program_of
from llava_export.pte.source import ModelSource
from llava_export.pte.stamp.graph import StampedGraph
from llava_export.pte.stamp.packing import Blob, pack
from llava_export.pte.stamp.schemes import SchemeDelegates
from llava_export.pte.stamp.template import LAYER, Slot, Template, read_template
from llava_export.recipe import Recipe
from llava_runner import contract
from llava_runner.contract import ModelCard

INT4_RANGE, INT8_RANGE = (-8, 8), (-127, 128)
STACKED_METHODS = (contract.VISION_ENCODER, contract.TEXT_DECODER)  # the others have no layers to copy

Graphs = Mapping[str, StampedGraph]  # by method


class WeightPacker:
    """Packs the real weights into the form that stamping needs, on a thread of its own.

    A context manager. While one block is packed, hashed and written, the caller reads and quantizes the next. Packed
    weights wait in files in ``folder``, until the program made of them is written. At the end of the ``with`` block all
    weights are packed.
    """

    def __init__(self, graphs: Graphs, source: ModelSource, *, folder: Path) -> None:
        self._source = source
        self._folder = folder
        self._delegated: dict[str, tuple[Blob, ...] | None] = {}
        self._constants: dict[str, Tensor | None] = {}
        for method, graph in graphs.items():
            self._delegated |= {f"{method}.{fqn}": None for fqn in graph.delegated_parameters()}
            self._constants |= {f"{method}.{fqn}": None for fqn in graph.constant_parameters()}
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> WeightPacker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
        finally:
            self._thread.shutdown()

    def pack(self, block: nn.Module, *, fqn: str) -> None:
        """Pack a quantized block's parameters, and then release them. Returns as soon as the block before is packed.

        Blocks of methods without layers keep their weights: those methods are lowered in the ordinary way.
        """
        self._wait()
        if any(is_in(fqn, method) for method in STACKED_METHODS):
            self._pending = self._thread.submit(self._pack, block, fqn)

    def blob(self, method: str, slot: Slot) -> Blob:
        """Return packed bytes of a parameter that a delegate reads."""
        blobs = self._delegated[f"{method}.{slot.fqn}"]
        assert blobs is not None, f"{slot.fqn} was never packed"
        return blobs[slot.index]

    def constant(self, method: str, fqn: str) -> Tensor:
        """Return a parameter that the program itself reads."""
        tensor = self._constants[f"{method}.{fqn}"]
        assert tensor is not None, f"{fqn} was never packed"
        return tensor

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _pack(self, block: nn.Module, fqn: str) -> None:
        for path, parameter in block.named_parameters():
            name = f"{fqn}.{path}"
            if name in self._delegated:
                self._delegated[name] = tuple(blob.stored_in(self._folder) for blob in pack(parameter))
            if name in self._constants:
                self._constants[name] = parameter
        self._source.release(block)


def lower_templates(
    source: ModelSource, *, card: ModelCard, partitioners: int, note: Callable[[str], None]
) -> dict[str, StampedGraph]:
    """Return the lowered template of each method with layers. ``note`` is called with what the user should know.

    Raises ``StampError``.
    """
    lower_method = partial(_lower_template, source, card=card, partitioners=partitioners)
    config = source.checkpoint.config
    graphs = {}
    for method in [name for name in STACKED_METHODS if name in card.methods]:
        short, extra_layers = _shortened(config, method)
        schemes = _schemes(source, method) if extra_layers > 0 else {}
        first, *others = _uniform_recipes(source.recipe, schemes, method=method)
        template = lower_method(method, short, recipe=first)
        if extra_layers > 0 and template.repeat is None:
            note(f"{method} has no layers that repeat once it is lowered, so all of them are lowered")
            graphs[method] = StampedGraph(lower_method(method, config, recipe=source.recipe), extra_layers=0)
            continue
        templates = [template, *(lower_method(method, short, recipe=other) for other in others)]
        delegates = SchemeDelegates(templates, schemes) if others else None
        graphs[method] = StampedGraph(template, extra_layers=extra_layers, schemes=delegates)
    return graphs


def stamp(graphs: Graphs, weights: WeightPacker, *, model: LlavaModel, card: ModelCard, partitioners: int) -> Lowered:
    """Return the whole program, as ``lower`` would have made it.

    ``model`` has the quantized weights of the methods without layers, which are lowered here.
    """
    others = [name for name in card.methods if name not in graphs]
    lowered = lower(
        export_methods(model, max_seq_len=card.max_seq_len, names=others), card=card, partitioners=partitioners
    )
    methods = {
        method: graph.stamp(blob_of=partial(weights.blob, method), constant_of=partial(weights.constant, method))
        for method, graph in graphs.items()
    }
    return program_of(methods | {name: lowered.exported_program(name) for name in others}, card=card)


def _schemes(source: ModelSource, method: str) -> dict[str, str]:
    """Return the scheme of each linear of a method's layers, by its name in the method. Empty without exceptions."""
    if not any(is_in(fqn, method) for fqn in source.recipe.exceptions):
        return {}
    modules = source.build(max_context_len=1).get_submodule(method).named_modules()
    linears = [fqn for fqn, module in modules if LAYER.search(fqn) and isinstance(module, nn.Linear)]
    return {fqn: source.recipe.scheme(f"{method}.{fqn}") for fqn in linears}


def _uniform_recipes(recipe: Recipe, schemes: Mapping[str, str], *, method: str) -> list[Recipe]:
    """Return a recipe for each of the schemes: it gives that one to all linears that have any.

    They are in the order of the schemes' names. If there are none, the recipe stays as it is.
    """
    names = [f"{method}.{fqn}" for fqn in schemes]
    return [
        replace(recipe, exceptions={**recipe.exceptions, **dict.fromkeys(names, scheme)})
        for scheme in sorted(set(schemes.values()))
    ] or [recipe]


def _lower_template(
    source: ModelSource, method: str, config: LlavaConfig, *, recipe: Recipe, card: ModelCard, partitioners: int
) -> Template:
    """Lower one method of a model of ``config``, quantized by ``recipe``, with random weights."""
    model = source.build(config)
    for fqn, block in model.blocks():
        if is_in(fqn, method):
            # Only the layout counts: any algorithm gives the same.
            recipe.with_changes(algorithm="minmax").quantize(block, fqn=fqn)
            _randomize(block)
    exported = export_methods(model, max_seq_len=card.max_seq_len, names=[method])
    lowered = lower(exported, card=card, partitioners=partitioners)
    parameters = dict(model.get_submodule(method).named_parameters())
    return read_template(lowered.exported_program(method), parameters=parameters)


def _shortened(config: LlavaConfig, method: str) -> tuple[LlavaConfig, int]:
    """Return the config of the template, and how many layers it leaves out."""
    if method == contract.TEXT_DECODER and config.text.num_hidden_layers > TEMPLATE_LAYERS:
        text = replace(config.text, num_hidden_layers=TEMPLATE_LAYERS)
        return replace(config, text=text), config.text.num_hidden_layers - TEMPLATE_LAYERS
    if method == contract.VISION_ENCODER and config.vision is not None:
        # With several feature layers, others than the last one are read too.
        (*others, last) = config.vision.feature_layers
        if last > TEMPLATE_LAYERS and not others:
            vision = replace(config.vision, feature_layers=(TEMPLATE_LAYERS,))
            return replace(config, vision=vision), last - TEMPLATE_LAYERS
    return config, 0


def _randomize(block: nn.Module) -> None:
    """Give all parameters of a block on the meta device, quantized ones too, random values. No two are equal."""
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_random_like(parameter), requires_grad=False))


def _random_like(parameter: Tensor) -> Tensor:
    """Return a random tensor of the same shape, type and quantization."""
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
