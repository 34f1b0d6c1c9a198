"""What MobileVLM's projector costs within image encoding, by profile; beside it the projector in torch's own layout.

    python -m benchmarks.bench_projector /tmp/package/mobilevlm.pte --model /tmp/mobilevlm-1.7b --runs 15

The program's `vision_encoder` and the projector alone, written both ways with the checkpoint's weights and quantized as
the package, are run in turn under ExecuTorch's event tracer. Written naively (`training/projectors.py`) the
projector's values are channels first; norms over channels then permute to and fro, and its 1x1 convolutions stay float.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from llava_export.benchmark.profile import CallProfile, call_profile, read_events
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.pte import lower
from llava_export.recipe import RECIPES, Recipe
from llava_runner import contract
from llava_runner.program import Program
from training.projectors import PROJECTORS

PUBLISHED = {"ldp": "ldpnet", "ldpv2": "ldpnetv2"}
KEYS = "model.mm_projector."
METHOD = "forward"
WARM_UP = 2


@dataclass
class Traced:
    """A method of a program under the event tracer."""

    path: Path
    method: str
    inputs: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        # In this order: the first registers what the others add kernels to.
        portable_lib = import_module("executorch.extension.pybindings.portable_lib")
        for kernels in ("executorch.extension.llm.custom_ops.custom_ops", "executorch.kernels.quantized"):
            import_module(kernels)
        self.module = portable_lib._load_for_executorch(str(self.path), enable_etdump=True)

    def run(self) -> torch.Tensor:
        return self.module.run_method(self.method, self.inputs)[0]

    def profile(self, path: Path) -> CallProfile:
        self.module.write_etdump_result_to_file(str(path))
        return call_profile(self.method, [read_events(path)], slice(WARM_UP, None))


def last(profile: CallProfile, count: int) -> float:
    """What the last instructions take together."""
    return sum(profile.instructions[index] for index in sorted(profile.instructions)[-count:])


def operators(profile: CallProfile) -> dict[str, float]:
    """What XNNPACK's operators take, and what is left: calls, copies, operators outside."""
    spent = sum(profile.delegated.values())
    return {**profile.delegated, "outside XNNPACK": max(0.0, profile.total - spent)}


def ours(checkpoint: Checkpoint) -> nn.Module:
    projector = checkpoint.build_model(max_context_len=1).vision_encoder.projector
    checkpoint.weights.fill(projector, prefix="vision_encoder.projector")
    return projector


def naive(checkpoint: Checkpoint) -> nn.Module:
    config, reader = checkpoint.config.projector, CheckpointReader(checkpoint.folder)
    projector = PROJECTORS[PUBLISHED[config.type]](config.in_features, config.out_features).eval()
    projector.load_state_dict({name: reader.read(KEYS + name).float() for name in projector.state_dict()})
    return projector.requires_grad_(False)


def export(module: nn.Module, features: torch.Tensor, path: Path, *, recipe: Recipe, as_ours: bool) -> None:
    """Lowered as the package's methods are; the naive one as ExecuTorch does it by itself."""
    recipe.quantize(module, fqn="vision_encoder.projector")
    exported = torch.export.export(module, (features,), strict=False)
    partitioners = lower.xnnpack_partitioners(2, quantized=recipe.vision != "fp32")
    with lower.transposes_cancelled() if as_ours else nullcontext():
        lowered = lower.to_edge_transform_and_lower(
            {METHOD: exported}, partitioner={METHOD: partitioners}, compile_config=lower.edge_config()
        )
    lower.write(lower.serialize(lowered), path)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the program, a MobileVLM's")
    parser.add_argument("--model", required=True, help="the checkpoint it was exported from")
    parser.add_argument("--runs", type=int, default=15, help="of each, in turn, after two to warm up")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    checkpoint = open_checkpoint(arguments.model)
    card = Program.open(arguments.package).card
    recipe = RECIPES["8da4w"].with_changes(vision=card.recipe["vision"])
    side = card.image_size
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    features = torch.randn(1, checkpoint.config.vision.num_features, checkpoint.config.vision.feature_size)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        traced = {"encoder": Traced(arguments.package, contract.VISION_ENCODER, (image,))}
        for name, build in (("ours", ours), ("naive", naive)):
            export(build(checkpoint), features, folder / f"{name}.pte", recipe=recipe, as_ours=name == "ours")
            traced[name] = Traced(folder / f"{name}.pte", METHOD, (features,))
        found = {}
        for _ in range(arguments.runs + WARM_UP):
            found = {name: method.run() for name, method in traced.items()}
        profiles = {name: method.profile(folder / f"{name}.etdump") for name, method in traced.items()}
    cosine = torch.nn.functional.cosine_similarity(found["ours"].flatten(), found["naive"].flatten(), dim=0)
    report(profiles, cosine=float(cosine), title=f"{card.source}, {card.recipe['vision']}, {arguments.runs} runs")


def report(profiles: dict[str, CallProfile], *, cosine: float, title: str) -> None:
    console = Console()
    encoder, alone, naive_alone = (profiles[name] for name in ("encoder", "ours", "naive"))
    within = last(encoder, len(alone.instructions))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, justify in (("medians", "left"), ("ms", "right"), ("of image encoding", "right")):
        table.add_column(column, justify=justify)
    for name, spent in (
        ("image encoding", encoder.total),
        ("  its projector", within),
        ("projector alone", alone.total),
        ("projector alone, naive layout", naive_alone.total),
    ):
        table.add_row(name, f"{spent:.1f}", f"{spent / encoder.total:.1%}")
    console.print(f"{title}; the two layouts' outputs: cosine {cosine:.6f}\n", highlight=False)
    console.print(table)
    by_operator = Table(box=None, pad_edge=False, header_style="dim")
    by_operator.add_column("\nprojector alone, by operator")
    by_operator.add_column("\nms", justify="right")
    by_operator.add_column("naive\nms", justify="right")
    ours, naive = operators(alone), operators(naive_alone)
    for name in sorted({**ours, **naive}, key=lambda name: -max(ours.get(name, 0), naive.get(name, 0)))[:14]:
        by_operator.add_row(name, f"{ours.get(name, 0):.2f}", f"{naive.get(name, 0):.2f}")
    console.print()
    console.print(by_operator)


if __name__ == "__main__":
    main()
