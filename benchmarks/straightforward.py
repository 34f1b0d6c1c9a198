"""The straightforward way to export a checkpoint, for comparison: every layer goes through the compiler.

Model, recipe and methods are the defaults of ``llava export``. The weights are loaded and quantized whole layers at a
time by torchao's ``quantize_``. All three methods are traced, and ExecuTorch's ``to_edge_transform_and_lower`` lowers
them as they are. The program is written from memory. There is no golden record.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.cli.terminal import silence_libraries
from llava_runner import contract
from llava_runner.arguments import ArgumentParser, run_command
from llava_runner.timings import peak_memory

CONTEXT = 768
GROUP_SIZE = 128
DESCRIPTION = """Export a checkpoint the straightforward way, to compare llava export with.

Every layer goes through ExecuTorch's compiler. Each line says how long it took
up to the end of a stage, and the most memory so far.
"""
EPILOG = """example:
  python -m benchmarks.straightforward --model llava-1.5-7b --out llava.pte
"""


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.straightforward", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--model", required=True, help="the checkpoint, as for llava export")
    parser.add_argument("--out", type=Path, required=True, metavar="PTE", help="the program to write")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Export as the command line says, and print time and memory after each stage."""
    silence_libraries()

    # ExecuTorch's compiler takes seconds to import. --help need not wait for it, and the figures do not count it.
    from torchao.quantization import quantize_

    from llava_export.pte.llama_ops import LlamaOpsAttention
    from llava_export.pte.lower import export_methods

    started = time.monotonic()

    def report(stage: str) -> None:
        """Print a line about a finished stage."""
        peak = (peak_memory() or 0) / 2**30
        print(f"{stage:<12} done after {time.monotonic() - started:6.0f} s   peak {peak:.2f} GiB", flush=True)

    checkpoint = open_checkpoint(arguments.model)
    model = checkpoint.build_model(max_context_len=CONTEXT, cached_attention=LlamaOpsAttention)
    configs = quantization_configs()
    for fqn, block in model.blocks():
        checkpoint.weights.fill(block, prefix=fqn)
        is_embedding = fqn == contract.TOKEN_EMBEDDING
        quantize_(block, configs[fqn.split(".")[0]], filter_fn=(lambda module, _: True) if is_embedding else None)
    report("quantize")
    methods = export_methods(model, max_seq_len=CONTEXT)
    report("export")
    lowered = lower(methods)
    report("lower")
    with open(arguments.out, "wb") as file:
        serialize(lowered).write_to_file(file)
    report("write")


def quantization_configs() -> dict[str, Any]:
    """Return torchao's configuration of the default recipe, by method."""
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig

    int4, int8 = torch.int4, torch.int8  # type: ignore[attr-defined]  # torch's stubs lack int4
    per_channel, per_group = PerAxis(0), PerGroup(GROUP_SIZE)
    return {
        contract.VISION_ENCODER: Int8DynamicActivationIntxWeightConfig(
            weight_dtype=int8, weight_granularity=per_channel
        ),
        contract.TOKEN_EMBEDDING: IntxWeightOnlyConfig(weight_dtype=int8, granularity=per_group),
        contract.TEXT_DECODER: Int8DynamicActivationIntxWeightConfig(weight_dtype=int4, weight_granularity=per_group),
    }


def lower(methods: dict[str, Any]) -> Any:
    """Return the exported methods as a lowered program. All but the token embedding go to XNNPACK."""
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    xnnpack = [
        XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True),
        XnnpackPartitioner(),
    ]
    return to_edge_transform_and_lower(
        methods,
        partitioner={name: [] if name == contract.TOKEN_EMBEDDING else xnnpack for name in methods},
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )


def serialize(lowered: Any) -> Any:
    """Return the serialized program in memory."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    return lowered.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            do_quant_fusion_and_const_prop=True,
        )
    )


if __name__ == "__main__":
    main()
