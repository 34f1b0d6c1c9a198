"""Times our vision tower against transformers' CLIPVisionModel, with the same quantization and partitioners.

Both have the widths of CLIP ViT-L/14-336, the same random weights and a few layers. Both programs take normalized
pixels and return the features before the last layer. They run in turn, so that whatever else the machine does slows
both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from benchmarks.runs import WARM_UP, add_runs
from llava_export.cli.terminal import silence_libraries
from llava_export.config import VisionConfig
from llava_export.models.clip_vision import ClipVisionTower
from llava_export.recipe import RECIPES
from llava_runner.arguments import ArgumentParser, positive_int, run_command

METHOD = "forward"
SCHEMES = ("8da8w", "8da4w", "fp32")
DESCRIPTION = """Time our vision tower against that of transformers.

Both have the widths of CLIP ViT-L/14-336, random weights, and the same
quantization and partitioners. They run in turn on ExecuTorch.
"""
EPILOG = """example:
  python -m benchmarks.bench_vision --layers 4 --runs 15
"""


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.bench_vision", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--layers", type=positive_int, default=4, metavar="N", help="layers of both towers (default: %(default)s)")
    add_runs(parser)
    add("--vision", choices=SCHEMES, default="8da8w", help="quantization of the linears (default: %(default)s)")
    run_command(parser, run, None)


def run(arguments: argparse.Namespace) -> None:
    """Export both towers, run them in turn, and print their times."""
    from executorch.runtime import Runtime

    silence_libraries()
    torch.manual_seed(1)
    pixel_values = torch.randn(1, 3, 336, 336)
    modules = build(arguments.layers)
    with torch.no_grad():
        expected = modules["ours"](pixel_values)
        agree = torch.cosine_similarity(expected.flatten(), modules["transformers"](pixel_values).flatten(), dim=0)
    print(f"float towers agree: cosine {agree:.7f}")

    methods = {}
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    with tempfile.TemporaryDirectory() as folder:
        for name, module in modules.items():
            path = Path(folder) / f"{name}.pte"
            export(module, path, vision=arguments.vision)
            methods[name] = Runtime.get().load_program(path).load_method(METHOD)
        for i in range(arguments.runs + WARM_UP):
            for name, method in methods.items():
                start = time.perf_counter()
                found = method.execute([pixel_values])[0]
                if i >= WARM_UP:
                    seconds[name].append(time.perf_counter() - start)
                else:
                    cosine = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    for name, times in seconds.items():
        print(f"{name:>14}: median {statistics.median(times):.3f} s  (min {min(times):.3f}, max {max(times):.3f})")
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["transformers"], strict=True)]
    print(f"transformers / ours, pair by pair: median {statistics.median(ratios):.2f}; last cosine {cosine:.5f}")


class TransformersTower(nn.Module):
    """The features that LLaVA reads, from the unchanged module of transformers."""

    def __init__(self, model: nn.Module, *, feature_layer: int) -> None:
        super().__init__()
        self.model = model
        self.feature_layer = feature_layer

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the features of the patches, without the class token."""
        output = self.model(pixel_values, output_hidden_states=True)
        return output.hidden_states[self.feature_layer][:, 1:]


def build(layers: int) -> dict[str, nn.Module]:
    """Return both towers by name, with equal weights and ``layers`` layers."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    torch.manual_seed(0)
    theirs = CLIPVisionModel(CLIPVisionConfig(**sizes)).eval().requires_grad_(False)
    ours = ClipVisionTower(VisionConfig(**sizes, feature_layers=(layers,), keep_class_token=False)).eval()
    ours.requires_grad_(False)
    state = {name.removeprefix("vision_model.").removeprefix("encoder."): t for name, t in theirs.state_dict().items()}
    for name, parameter in ours.named_parameters():
        if ".qkv_proj." in name:
            parameter.copy_(
                torch.cat([state[name.replace("qkv_proj", part)] for part in ("q_proj", "k_proj", "v_proj")])
            )
        else:
            parameter.copy_(state[name])
    return {"ours": ours, "transformers": TransformersTower(theirs, feature_layer=layers)}


def export(module: nn.Module, path: Path, *, vision: str) -> None:
    """Quantize and lower a tower, and write it to ``path``. Both are treated alike."""
    # ExecuTorch's compiler takes seconds to import.
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from llava_export.pte.lower import serialize, write, xnnpack_partitioners

    RECIPES["8da4w"].with_changes(vision=vision, group_size=128).quantize(module, fqn="vision_encoder.vision_tower")
    with torch.no_grad():
        program = torch.export.export(module, (torch.zeros(1, 3, 336, 336),), strict=False)
    lowered = to_edge_transform_and_lower(
        {METHOD: program},
        partitioner={METHOD: xnnpack_partitioners(2, quantized=vision != "fp32")},
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    write(serialize(lowered), path)


if __name__ == "__main__":
    main()
