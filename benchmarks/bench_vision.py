"""Times our vision towers against those of transformers, with the same quantization and partitioners, and each other.

The towers have the widths of CLIP ViT-L/14-336 and SigLIP-so400m/14-384, random weights, the same for ours and theirs,
and a few layers. All programs take normalized pixels and return the features that LLaVA reads. They run in turn, so
that whatever else the machine does slows all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from benchmarks.runs import WARM_UP, add_runs
from llava_export.cli.terminal import silence_libraries
from llava_export.families.sections import CLIP_L_336, SIGLIP_SO400M_384, vision_config
from llava_export.models.vision_towers import build_vision_tower
from llava_export.recipe import RECIPES
from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.documents import JsonObject
from llava_runner.errors import UserError

METHOD = "forward"
SCHEMES = ("8da8w", "8da4w", "fp32")
TOWERS: Mapping[str, Mapping[str, Any]] = {"clip": CLIP_L_336, "siglip": SIGLIP_SO400M_384}
DESCRIPTION = """Time our vision towers against those of transformers.

They have the widths of CLIP ViT-L/14-336 and SigLIP-so400m/14-384, random
weights, and the same quantization and partitioners. They run in turn on
ExecuTorch.
"""
EPILOG = """example:
  python -m benchmarks.bench_vision --layers 4 --runs 15
"""


@dataclass(frozen=True)
class Contestant:
    """A tower that is timed: ours or transformers'. ``flops`` are the operations of one image, by our tower."""

    tower: str
    whose: str
    module: nn.Module
    pixel_values: Tensor
    expected: Tensor
    flops: int


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.bench_vision", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--layers", type=positive_int, default=4, metavar="N", help="layers of the towers (default: %(default)s)")
    add_runs(parser)
    add("--vision", choices=SCHEMES, default="8da8w", help="quantization of the linears (default: %(default)s)")
    add("--towers", nargs="+", choices=TOWERS, default=list(TOWERS), help="which to time (default: all)")
    add("--ours-alone", action="store_true", help="leave out transformers' towers")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Export the towers, run them in turn, and print their times."""
    from executorch.runtime import Runtime

    silence_libraries()
    contestants = [
        contestant
        for name in arguments.towers
        for contestant in build(name, arguments.layers)
        if contestant.whose == "ours" or not arguments.ours_alone
    ]
    seconds: list[list[float]] = [[] for _ in contestants]
    with tempfile.TemporaryDirectory() as folder:
        methods = []
        for i, contestant in enumerate(contestants):
            path = Path(folder) / f"{i}.pte"
            export(contestant, path, vision=arguments.vision)
            methods.append(Runtime.get().load_program(path).load_method(METHOD))
        for i in range(arguments.runs + WARM_UP):
            for contestant, method, times in zip(contestants, methods, seconds, strict=True):
                start = time.perf_counter()
                found = method.execute([contestant.pixel_values])[0]
                if i >= WARM_UP:
                    times.append(time.perf_counter() - start)
                elif (cosine := _cosine(found, contestant.expected)) < 0.99:
                    raise UserError(f"{contestant.tower}, {contestant.whose}: cosine {cosine:.5f} with the float tower")
    show(contestants, seconds)


def show(contestants: Sequence[Contestant], seconds: Sequence[Sequence[float]]) -> None:
    """Print each tower's times, and the medians of what runs in turn had to each other.

    ``seconds`` has the times of each of the ``contestants``.
    """
    first, times_of_first = contestants[0], seconds[0]
    for contestant, times in zip(contestants, seconds, strict=True):
        per_flop = [
            (own / contestant.flops) / (other / first.flops) for own, other in zip(times, times_of_first, strict=True)
        ]
        print(
            f"{contestant.tower:>6}, {contestant.whose:<12}: median {statistics.median(times):.3f} s "
            f"(min {min(times):.3f}, max {max(times):.3f}), {contestant.flops / 1e9:.0f} GFLOP; time per FLOP "
            f"{statistics.median(per_flop):.2f} of {first.tower}, {first.whose}"
        )


class TransformersTower(nn.Module):
    """The features that LLaVA reads, from the unchanged module of transformers."""

    def __init__(self, model: nn.Module, *, feature_layer: int, first_row: int) -> None:
        super().__init__()
        self.model = model
        self.feature_layer = feature_layer
        self.first_row = first_row

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the features of the patches, without a class token."""
        output = self.model(pixel_values, output_hidden_states=True)
        return output.hidden_states[self.feature_layer][:, self.first_row :]


def build(name: str, layers: int) -> list[Contestant]:
    """Return our tower and transformers' of a kind, with equal weights and ``layers`` layers."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModel

    sizes = {**TOWERS[name], "num_hidden_layers": layers}
    model_type = sizes.pop("model_type")
    torch.manual_seed(0)
    # The head of SigLIP, which pools the rows, is no part of what LLaVA reads. CLIP has none.
    theirs_config = AutoConfig.for_model(model_type, **sizes, vision_use_head=False)
    model = AutoModel.from_config(theirs_config).eval().requires_grad_(False)
    section = JsonObject({**sizes, "model_type": model_type}, what=name, error=UserError)
    config = vision_config(section, feature_layers=(layers,), keep_first_row=model_type == "siglip_vision_model")
    ours = build_vision_tower(config).eval().requires_grad_(False)
    state = {name.removeprefix("vision_model.").removeprefix("encoder."): t for name, t in model.state_dict().items()}
    for fqn, parameter in ours.named_parameters():
        if ".qkv_proj." in fqn:
            parameter.copy_(
                torch.cat([state[fqn.replace("qkv_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            )
        else:
            parameter.copy_(state[fqn])
    theirs = TransformersTower(model, feature_layer=layers, first_row=config.num_rows - config.num_patches)
    pixel_values = torch.randn(1, 3, config.image_size, config.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected = ours(pixel_values)
    print(f"{name}: float towers agree, cosine {_cosine(theirs(pixel_values), expected):.7f}")
    return [
        Contestant(name, whose, module, pixel_values, expected, counter.get_total_flops())
        for whose, module in (("ours", ours), ("transformers", theirs))
    ]


def _cosine(found: Tensor, expected: Tensor) -> float:
    """Return the cosine of two tensors as vectors."""
    return float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0))


def export(contestant: Contestant, path: Path, *, vision: str) -> None:
    """Quantize and lower a tower, and write it to ``path``. All are treated alike."""
    # ExecuTorch's compiler takes seconds to import.
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from llava_export.pte.lower import serialize, write, xnnpack_partitioners

    recipe = RECIPES["8da4w"].with_changes(vision=vision, group_size=128)
    recipe.quantize(contestant.module, fqn="vision_encoder.vision_tower")
    with torch.no_grad():
        program = torch.export.export(contestant.module, (contestant.pixel_values,), strict=False)
    lowered = to_edge_transform_and_lower(
        {METHOD: program},
        partitioner={METHOD: xnnpack_partitioners(2, quantized=vision != "fp32")},
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    write(serialize(lowered), path)


if __name__ == "__main__":
    main()
