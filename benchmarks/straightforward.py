"""The straightforward way to export a checkpoint, to compare the exporter with: every layer through the compiler.

    python -m benchmarks.straightforward --model DIR --out llava.pte

The same model, recipe and methods as ``python -m llava_export.cli.export`` has by default. Its weights are loaded and
quantized whole layers at a time by torchao's ``quantize_``, all three methods are traced and lowered by ExecuTorch's
``to_edge_transform_and_lower`` as they are, and the program is written from memory. No golden record.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torchao.quantization import quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.cli.terminal import silence_libraries
from llava_export.pte.llama_ops import LlamaOpsAttention
from llava_export.pte.lower import export_methods
from llava_runner import contract
from llava_runner.errors import exit_cleanly
from llava_runner.timings import peak_memory

CONTEXT = 768
GROUP_SIZE = 128
INT4, INT8 = torch.int4, torch.int8  # type: ignore[attr-defined]  # torch's stubs lack int4
CONFIGS = {
    contract.VISION_ENCODER: Int8DynamicActivationIntxWeightConfig(weight_dtype=INT8, weight_granularity=PerAxis(0)),
    contract.TOKEN_EMBEDDING: IntxWeightOnlyConfig(weight_dtype=INT8, granularity=PerGroup(GROUP_SIZE)),
    contract.TEXT_DECODER: Int8DynamicActivationIntxWeightConfig(
        weight_dtype=INT4, weight_granularity=PerGroup(GROUP_SIZE)
    ),
}


def run(arguments: argparse.Namespace) -> None:
    silence_libraries()
    started = time.monotonic()

    def report(stage: str) -> None:
        peak = (peak_memory() or 0) / 2**30
        print(f"{stage:<12} done after {time.monotonic() - started:6.0f} s   peak {peak:.2f} GiB", flush=True)

    checkpoint = open_checkpoint(arguments.model)
    model = checkpoint.build_model(max_context_len=CONTEXT, cached_attention=LlamaOpsAttention)
    for fqn, block in model.blocks():
        checkpoint.weights.fill(block, prefix=fqn)
        config = CONFIGS[fqn.split(".")[0]]
        is_embedding = fqn == contract.TOKEN_EMBEDDING
        quantize_(block, config, filter_fn=(lambda module, _: True) if is_embedding else None)
    report("quantize")
    methods = export_methods(model, max_seq_len=CONTEXT)
    report("export")
    xnnpack = [
        XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True),
        XnnpackPartitioner(),
    ]
    lowered = to_edge_transform_and_lower(
        methods,
        partitioner={name: [] if name == contract.TOKEN_EMBEDDING else xnnpack for name in methods},
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    report("lower")
    program = lowered.to_executorch(
        ExecutorchBackendConfig(
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
            sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            do_quant_fusion_and_const_prop=True,
        )
    )
    with open(arguments.out, "wb") as file:
        program.write_to_file(file)
    report("write")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as for the exporter")
    parser.add_argument("--out", type=Path, required=True, metavar="PTE")
    arguments = parser.parse_args()
    exit_cleanly(lambda: run(arguments))


if __name__ == "__main__":
    main()
