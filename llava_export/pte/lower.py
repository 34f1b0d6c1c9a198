"""The ordinary way from a quantized ``LlavaModel`` to a program: export each method, lower it to XNNPACK, serialize."""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.config.gemm_configs import AddmmConfig, LinearConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import (
    EdgeCompileConfig,
    EdgeProgramManager,
    ExecutorchBackendConfig,
    ExecutorchProgramManager,
    to_edge_transform_and_lower,
)
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from llava_export.models.llava import LlavaModel
from llava_export.pte.needless_passes import needless_passes_left_out
from llava_export.pte.sharing import stored_once
from llava_export.pte.transposes import transposes_cancelled
from llava_export.recipe import Recipe
from llava_export.system import return_free_memory
from llava_runner import contract
from llava_runner.contract import ModelCard

Lowered = EdgeProgramManager  # a program with its delegates, ready to be serialized

EXAMPLE_LENGTH = 8  # tokens to trace with; any length within the bounds gives the same program


def export_methods(
    model: LlavaModel, *, max_seq_len: int, names: Collection[str] = contract.METHODS
) -> dict[str, ExportedProgram]:
    """Return traced methods of a model, by name.

    Their shapes are dynamic as the contract says: the sides of an image, and T, which is 1 to ``max_seq_len`` tokens.
    """
    length = min(EXAMPLE_LENGTH, max_seq_len)
    token_ids = torch.zeros(1, length, dtype=torch.int64)
    inputs_embeds = torch.zeros(1, length, model.token_embedding.embedding_dim)
    input_pos = torch.zeros(1, dtype=torch.int64)
    tokens = {1: Dim("tokens", min=1, max=max_seq_len)} if max_seq_len > 1 else {}
    examples: dict[str, tuple[nn.Module, tuple[Tensor, ...], tuple[Any, ...]]] = {
        contract.TOKEN_EMBEDDING: (model.token_embedding, (token_ids,), (tokens,)),
        contract.TEXT_DECODER: (model.text_decoder, (inputs_embeds, input_pos), (tokens, None)),
    }
    if contract.VISION_ENCODER in names:
        image_size = model.vision_encoder.image_size
        # The tracer takes sizes for constants if they equal each other or a bound. These do not.
        image = torch.zeros(3, image_size - 1, image_size - 2, dtype=torch.uint8)
        sides = {i: Dim(name, min=contract.MIN_IMAGE_SIDE, max=image_size) for i, name in ((1, "height"), (2, "width"))}
        examples = {contract.VISION_ENCODER: (model.vision_encoder, (image,), (sides,)), **examples}
    with torch.no_grad():
        return {
            name: torch.export.export(
                module,
                args,
                dynamic_shapes=dynamic_shapes,
                strict=False,
                # The number of rows whose logits are kept is no reason to fix their number.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            for name, (module, args, dynamic_shapes) in examples.items()
            if name in names
        }


def lower(methods: dict[str, ExportedProgram], *, card: ModelCard, partitioners: int) -> EdgeProgramManager:
    """Return a program of some traced methods in which XNNPACK's delegates hold what XNNPACK can run.

    ``partitioners`` is 1 to delegate the quantized linears alone, and 2 to delegate everything.
    """
    chosen = xnnpack_partitioners(partitioners, quantized=Recipe.from_dict(card.recipe).quantizes_layers)
    with collector_paused(), transposes_cancelled(), needless_passes_left_out():
        return to_edge_transform_and_lower(
            methods,
            transform_passes=[without_debug_handles],
            # The token embedding is one lookup in a table. There is nothing in it for XNNPACK to run.
            partitioner={name: [] if name == contract.TOKEN_EMBEDDING else chosen for name in methods},
            compile_config=edge_config(),
            constant_methods=constant_methods(card),
        )


def edge_config() -> EdgeCompileConfig:
    """Return the options of lowering. Lowering changes them, so each call returns a new object."""
    # The llama operators are not ATen's, so the strict check of the IR would fail. Without dim order, reshapes stay
    # view_copy, which memory planning turns into aliases.
    return EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)


def without_debug_handles(graph_module: GraphModule) -> PassResult:
    """Remove the debug handles of a graph, in place. Return it as the result of a pass.

    They number the operations of a whole program for debuggers. Without them, equal layers make equal delegates.
    """
    for node in graph_module.graph.nodes:
        node.meta.pop("debug_handle", None)
    return PassResult(graph_module, True)


def program_of(methods: dict[str, ExportedProgram], *, card: ModelCard) -> EdgeProgramManager:
    """Return one program of methods that are lowered already."""
    return EdgeProgramManager(methods, constant_methods(card), edge_config())


def serialize(lowered: EdgeProgramManager) -> ExecutorchProgramManager:
    """Plan the memory of a lowered program. Return it in the form that ``write`` takes."""
    config = ExecutorchBackendConfig(
        # Callers bring memory for their inputs. Room planned for the longest input would come on top of that.
        memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
        # Fuses dequantize + embedding into ExecuTorch's quantized lookup.
        do_quant_fusion_and_const_prop=True,
    )
    with collector_paused():
        return lowered.to_executorch(config)


def write(program: ExecutorchProgramManager, path: Path, *, has_tied_head: bool = False) -> None:
    """Write a serialized program to a file. A head that is tied to the token embedding is written once with it."""
    with open(path, "wb") as file:
        if has_tied_head:
            stored_once(program._pte_data).write_to_file(file)
        else:
            program.write_to_file(file)


def constant_methods(card: ModelCard) -> Mapping[str, object]:
    """Return the program's metadata, by the names that ExecuTorch's runners read."""
    return {
        contract.MAX_SEQ_LEN: card.max_seq_len,
        contract.MAX_CONTEXT_LEN: card.max_context_len,
        contract.BOS_ID: card.bos_id,
        contract.EOS_IDS: list(card.eos_ids),
        contract.VOCAB_SIZE: card.vocab_size,
        contract.USE_KV_CACHE: True,
        contract.USE_SDPA_WITH_KV_CACHE: True,
        contract.ENABLE_DYNAMIC_SHAPE: True,
        contract.MODEL_CARD: card.to_json(),
    }


class _Xnnpack(XnnpackPartitioner):
    """A partitioner that names the operators not to decompose, for itself and all partitioners after it.

    The base class also returns a condition. To try it on every operator, ExecuTorch retraces the program twice for each
    partitioner. Without a condition it need not. It checks after lowering that all operators named were delegated.
    """

    def ops_to_not_decompose(self, ep: ExportedProgram) -> tuple[list[OpOverload], None]:
        """Return the operators that the base class names, and no condition."""
        operators, _ = XnnpackPartitioner().ops_to_not_decompose(ep)
        return operators, None


def xnnpack_partitioners(count: int, *, quantized: bool) -> list[XnnpackPartitioner]:
    """Return the partitioners for ``count`` of ``lower``. ``quantized`` says whether any linear of the model is."""
    # One delegate for each linear, which reads its weights by name. The rest of the graph stays in few large delegates.
    linears: dict[str, Any] = {"config_precisions": ConfigPrecisionType.DYNAMIC_QUANT, "per_op_mode": True}
    if count == 1:
        return [XnnpackPartitioner(**linears)]  # float linears are decomposed, and stay outside
    # The first partitioner gets linears alone. Otherwise it would also make a delegate of each float convolution. It is
    # left out where nothing is quantized. Otherwise it would make one of each float linear.
    return [_Xnnpack(configs=[LinearConfig, AddmmConfig], **linears), _Xnnpack()] if quantized else [_Xnnpack()]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Stop Python's garbage collector inside a ``with`` block, and collect once at its end.

    Lowering makes millions of graph nodes. The collector would walk them again and again, for a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        gc.collect()
        return_free_memory()
