"""Measures what MobileVLM's projector costs within image encoding, here and in torch's own layout.

The program's ``vision_encoder`` and the projector alone run in turn under ExecuTorch's event tracer. The projector is
exported twice, with the checkpoint's weights and quantized as in the package: as we write it, and naively
(``training/projectors.py``). The naive one keeps channels first. Its norms over channels then need permutations, and
its 1x1 convolutions stay float.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from benchmarks.runs import WARM_UP, add_runs
from llava_export.benchmark.profile import CallProfile, call_profile, read_events
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.cli.terminal import new_console, plain_table, silence_libraries
from llava_export.recipe import RECIPES, Recipe
from llava_runner import contract
from llava_runner.arguments import ArgumentParser, run_command
from llava_runner.errors import UserError
from llava_runner.program import Program
from training.projectors import PROJECTORS

PUBLISHED = {"ldp": "ldpnet", "ldpv2": "ldpnetv2"}
KEYS = "model.mm_projector."
METHOD = "forward"
DESCRIPTION = """Measure what MobileVLM's projector costs within image encoding.

The first table has the median times of image encoding and of the projector in
it and alone. "naive layout" is the projector with channels first, as torch has
it. The second table has the projector's times by operator.
"""
EPILOG = """example:
  python -m benchmarks.bench_projector package/mobilevlm.pte \\
      --model mobilevlm-1.7b --runs 15
"""


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.bench_projector", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("package", type=Path, metavar="PTE", help="the program of a MobileVLM")
    add("--model", required=True, help="the checkpoint that it was exported from")
    add_runs(parser)
    run_command(parser, run, None)


@dataclass
class Traced:
    """A method of a program, run under the event tracer."""

    path: Path
    method: str
    inputs: tuple[torch.Tensor, ...]

    def __post_init__(self) -> None:
        # The order matters: the first registers what the others add their kernels to.
        portable_lib = import_module("executorch.extension.pybindings.portable_lib")
        for kernels in ("executorch.extension.llm.custom_ops.custom_ops", "executorch.kernels.quantized"):
            import_module(kernels)
        self.module = portable_lib._load_for_executorch(str(self.path), enable_etdump=True)

    def run(self) -> torch.Tensor:
        """Run the method and return its output."""
        return self.module.run_method(self.method, self.inputs)[0]

    def profile(self, path: Path) -> CallProfile:
        """Write the trace to ``path``. Return the profile of all runs but those that warm up."""
        self.module.write_etdump_result_to_file(str(path))
        return call_profile(self.method, [read_events(path)], slice(WARM_UP, None))


def last(profile: CallProfile, count: int) -> float:
    """Return the time of the last ``count`` instructions together, in milliseconds."""
    return sum(profile.instructions[index] for index in sorted(profile.instructions)[-count:])


def operators(profile: CallProfile) -> dict[str, float]:
    """Return the milliseconds of XNNPACK's operators by name, and of all else: calls, copies, operators outside."""
    spent = sum(profile.delegated.values())
    return {**profile.delegated, "outside XNNPACK": max(0.0, profile.total - spent)}


def ours(checkpoint: Checkpoint) -> nn.Module:
    """Return the projector as we write it, with the checkpoint's weights."""
    projector = checkpoint.build_model(max_context_len=1).vision_encoder.projector
    checkpoint.weights.fill(projector, prefix="vision_encoder.projector")
    return projector


def naive(checkpoint: Checkpoint) -> nn.Module:
    """Return the projector in torch's own layout, with the checkpoint's weights."""
    config, reader = checkpoint.config.projector, CheckpointReader(checkpoint.own_folders[-1])
    assert config is not None
    projector = PROJECTORS[PUBLISHED[config.type]](config.in_features, config.out_features).eval()
    projector.load_state_dict({name: reader.read(KEYS + name).float() for name in projector.state_dict()})
    return projector.requires_grad_(False)


def export(module: nn.Module, features: torch.Tensor, path: Path, *, recipe: Recipe, as_ours: bool) -> None:
    """Quantize and lower a projector for ``features``, and write it to ``path``.

    Ours is lowered as the methods of a package are. The naive one is lowered as ExecuTorch does it by itself.
    """
    from llava_export.pte import lower  # ExecuTorch's compiler takes seconds to import

    recipe.quantize(module, fqn="vision_encoder.projector")
    exported = torch.export.export(module, (features,), strict=False)
    partitioners = lower.xnnpack_partitioners(2, quantized=recipe.vision != "fp32")
    with lower.transposes_cancelled() if as_ours else nullcontext():
        lowered = lower.to_edge_transform_and_lower(
            {METHOD: exported}, partitioner={METHOD: partitioners}, compile_config=lower.edge_config()
        )
    lower.write(lower.serialize(lowered), path)


@torch.no_grad()
def run(arguments: argparse.Namespace) -> None:
    """Measure and print the tables. Raises a ``UserError`` for the user's mistakes."""
    silence_libraries()
    checkpoint = open_checkpoint(arguments.model)
    vision, projector = checkpoint.config.vision, checkpoint.config.projector
    assert vision is not None and projector is not None
    if projector.type not in PUBLISHED:
        raise UserError(f"{arguments.model} is no MobileVLM: its projector is {projector.type}")
    card = Program.open(arguments.package).card
    recipe = RECIPES["8da4w"].with_changes(vision=card.recipe["vision"], group_size=card.recipe["group_size"])
    side = card.image_size
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    features = torch.randn(1, vision.num_features, vision.feature_size)

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
    """Print both tables."""
    console = new_console()
    encoder, alone, naive_alone = (profiles[name] for name in ("encoder", "ours", "naive"))
    table = plain_table("medians", "ms", "of image encoding", right=("ms", "of image encoding"))
    for name, spent in (
        ("image encoding", encoder.total),
        ("  its projector", last(encoder, len(alone.instructions))),
        ("projector alone", alone.total),
        ("projector alone, naive layout", naive_alone.total),
    ):
        table.add_row(name, f"{spent:.1f}", f"{spent / encoder.total:.1%}")
    console.print(f"{title}; the two layouts' outputs: cosine {cosine:.6f}\n")
    console.print(table)
    by_operator = plain_table("projector alone, by operator", "ms", "naive, ms", right=("ms", "naive, ms"))
    ours, naive = operators(alone), operators(naive_alone)
    for name in sorted({**ours, **naive}, key=lambda name: -max(ours.get(name, 0), naive.get(name, 0)))[:14]:
        by_operator.add_row(name, f"{ours.get(name, 0):.2f}", f"{naive.get(name, 0):.2f}")
    console.print()
    console.print(by_operator)


if __name__ == "__main__":
    main()
