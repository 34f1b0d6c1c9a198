"""Writes a checkpoint with random weights in the layout of a published one, to measure memory and time with.

LLaVA is written as llava-hf has it on the hub: sharded fp16 safetensors with their index, config and image processor.
MobileVLM is written as its authors have it: sharded bf16 ``pytorch_model.bin`` with the vision tower, and config. So is
LLaVA-Med. One shard is in memory at a time. The weights are noise, so the answers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.progress import track
from safetensors.torch import save_file

from benchmarks.published_configs import (
    LLAVA,
    MOBILEVLM,
    ORIGINAL,
    SMALL_TOWER,
    TOWER_FOLDER,
    VISION_TOWER,
    config_like,
    processor_like,
)
from benchmarks.random_tokenizers import write_tokenizer
from llava_export.families.language_models import original_language_model
from llava_runner.arguments import ArgumentParser, positive_int, run_command
from llava_runner.errors import UserError
from training.projectors import PROJECTORS

DESCRIPTION = """Write a checkpoint with random weights.

It has the files and the layout of the published model. Exports of it take as
much time and memory, but its answers mean nothing.
"""
EPILOG = """examples:
  python -m benchmarks.make_checkpoint --like llava-1.5-7b --out llava-1.5-7b
  python -m benchmarks.make_checkpoint --like mobilevlm-1.7b --out mobilevlm-1.7b
  python -m benchmarks.make_checkpoint --like bakllava-7b --small --out small
"""

SHARD_BYTES = 1_000_000_000
STANDARD_DEVIATION = 0.02  # of matrices, as transformers initializes them
# Each of some 32 layers adds to the residual stream twice. As in GPT-2's initialization (Radford et al., 2019), those
# matrices get a smaller deviation, and the embedded tokens torch's larger one. Otherwise each layer of noise would
# magnify the rounding errors of the layers before it, which no trained model does.
RESIDUAL_DEVIATION = STANDARD_DEVIATION / (2 * 32) ** 0.5
EMBEDDING_DEVIATION = 1.0
INTO_RESIDUAL = re.compile(r"\.(o_proj|down_proj|out_proj|fc2)\.weight$")

# Beginnings of names in transformers, and the beginnings of the same names in the published files.
PUBLISHED_NAMES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.vision_tower\.(?:vision_model\.)?", "vision_tower.vision_model."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
)


@dataclass(frozen=True)
class Format:
    """The way weights are stored. Names of shards begin with ``stem`` and end with ``suffix``."""

    dtype: torch.dtype
    stem: str
    suffix: str
    save: Callable[[dict[str, torch.Tensor], Path], None]


def save_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a shard that everybody may read."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


SAFETENSORS = Format(torch.float16, "model", "safetensors", save_safetensors)
BIN = Format(torch.bfloat16, "pytorch_model", "bin", torch.save)


def tensor_shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    """Return the shape of every tensor by its published name."""
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    if config["model_type"] == "llava":
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(LlavaConfig.from_dict(config))
        return {published_name(name): parameter.shape for name, parameter in model.named_parameters()}
    sizes: dict[str, Any] = {key: value for key, value in config.items() if key != "model_type"}
    text = AutoConfig.for_model(original_language_model(config).model_type, **sizes)
    tower = {**VISION_TOWER, **(SMALL_TOWER if config["mm_vision_tower"] == TOWER_FOLDER else {})}
    with torch.device("meta"):
        parts = {
            "": AutoModelForCausalLM.from_config(text),
            "model.mm_projector.": projector_of(config),
            "model.vision_tower.vision_tower.vision_model.": CLIPVisionModel(CLIPVisionConfig(**tower)),
        }
    return {
        prefix + name.removeprefix("vision_model."): parameter.shape
        for prefix, part in parts.items()
        for name, parameter in part.named_parameters()
    }


def projector_of(config: dict[str, Any]) -> torch.nn.Module:
    """Return the projector of a ``config.json`` in the layout of LLaVA's authors."""
    features, width = config["mm_hidden_size"], config["hidden_size"]
    if config["mm_projector_type"] in PROJECTORS:
        return PROJECTORS[config["mm_projector_type"]](features, width)
    return torch.nn.Sequential(torch.nn.Linear(features, width), torch.nn.GELU(), torch.nn.Linear(width, width))


def published_name(name: str) -> str:
    """Return the published name of a parameter of transformers' LLaVA."""
    for pattern, replacement in PUBLISHED_NAMES:
        renamed, matches = re.subn(pattern, replacement, name)
        if matches:
            return renamed
    raise ValueError(f"transformers has a parameter outside the known parts: {name}")


def shards(shapes: dict[str, torch.Size]) -> list[list[str]]:
    """Return the names of each shard, in order. A shard ends where its 16-bit tensors fill it."""
    result: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        size += 2 * shape.numel()
        if size > SHARD_BYTES and result[-1]:
            result.append([])
            size = 2 * shape.numel()
        result[-1].append(name)
    return result


def random_tensor(name: str, shape: torch.Size, *, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Return a tensor of random values. Norms are ones and biases zeros."""
    if len(shape) == 1 and name.endswith(".bias"):
        return torch.zeros(shape, dtype=dtype)
    if len(shape) == 1 and name.endswith(".weight"):
        return torch.ones(shape, dtype=dtype)
    tensor = torch.empty(shape, dtype=dtype)
    deviation = STANDARD_DEVIATION
    if INTO_RESIDUAL.search(name):
        deviation = RESIDUAL_DEVIATION
    elif name.endswith("embed_tokens.weight"):
        deviation = EMBEDDING_DEVIATION
    for rows in tensor.view(shape[0], -1).split(4096):  # float32 is faster, but the whole tensor would not fit
        rows.copy_(torch.randn(rows.shape, generator=generator).mul_(deviation))
    return tensor


def write_weights(shapes: dict[str, torch.Size], folder: Path, *, stored: Format, seed: int) -> None:
    """Write the shards and their index."""
    generator = torch.Generator().manual_seed(seed)
    names = shards(shapes)
    weight_map = {}
    for i, shard in enumerate(track(names, description="writing shards"), start=1):
        file = f"{stored.stem}-{i:05d}-of-{len(names):05d}.{stored.suffix}"
        tensors = {name: random_tensor(name, shapes[name], dtype=stored.dtype, generator=generator) for name in shard}
        stored.save(tensors, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    total_size = 2 * sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / f"{stored.stem}.{stored.suffix}.index.json").write_text(json.dumps(index, indent=2))


def write_image_processor(config: dict[str, Any], folder: Path) -> None:
    """Write the ``preprocessor_config.json`` of a LLaVA."""
    processor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        **processor_like(config),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the ``config.json``, and that of a small vision tower where the model's own does not describe it."""
    if config.get("mm_vision_tower") == TOWER_FOLDER:
        (folder / TOWER_FOLDER).mkdir()
        tower = {**VISION_TOWER, **SMALL_TOWER}
        (folder / TOWER_FOLDER / "config.json").write_text(json.dumps(tower, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def run(arguments: argparse.Namespace) -> None:
    """Write the checkpoint. Raises ``UserError`` if the folder is not empty."""
    folder = arguments.out
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    config = config_like(arguments.like, layers=arguments.layers, small=arguments.small)
    stored = SAFETENSORS if arguments.like in LLAVA else BIN
    write_weights(tensor_shapes(config), folder, stored=stored, seed=arguments.seed)
    write_tokenizer(arguments.like, folder)
    if arguments.like in LLAVA:
        write_image_processor(config, folder)
    # The config is the last file. So a folder that is not finished is no checkpoint.
    write_config(folder, config)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e9:.1f} GB, like {arguments.like}, random weights of seed {arguments.seed}")


def main() -> NoReturn:
    """Run the command and exit."""
    names = [*LLAVA, *MOBILEVLM, *ORIGINAL]
    parser = ArgumentParser(prog="python -m benchmarks.make_checkpoint", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("--like", choices=names, required=True, metavar="MODEL", help=", ".join(names))
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the checkpoint, new or empty")
    add("--small", action="store_true", help="a narrow decoder and tower, with the model's vocabulary")
    add("--layers", type=positive_int, metavar="N", help="layers of the decoder (default: the model's)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the weights (default: %(default)s)")
    run_command(parser, run, None)


if __name__ == "__main__":
    main()
