"""``python -m llava_export.surgery``: a checkpoint taken apart, for those who convert its parts with other tools.

Projector and vision tower are written as ``torch.save`` does (``llava.projector``, ``llava.clip``), the language model
as an ordinary Llama checkpoint that transformers and llama.cpp's own converter read. The checkpoint is not changed.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_runner import contract
from llava_runner.errors import exit_cleanly

if TYPE_CHECKING:
    import torch

    from llava_export.checkpoint.checkpoint import Checkpoint
    from llava_export.checkpoint.weights import Need

PROJECTOR, CLIP, TEXT = "llava.projector", "llava.clip", "text-model"
SHARD_BYTES = 1 << 30  # as much is in memory at a time


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m llava_export.surgery",
        description="Take a LLaVA-family checkpoint apart: projector, vision tower, language model.",
    )
    parser.add_argument("-m", "--model", required=True, help="hub id, folder of a checkpoint, or a built-in name")
    parser.add_argument(
        "--vision-tower", help="hub id or folder of the CLIP tower, where the checkpoint has none inside"
    )
    parser.add_argument("--output-dir", type=Path, default=Path(), help="folder to write to (default: the current one)")
    arguments = parser.parse_args()
    exit_cleanly(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    from llava_export.checkpoint.checkpoint import open_checkpoint
    from llava_export.package.staging import staged

    checkpoint = open_checkpoint(arguments.model, vision_tower=arguments.vision_tower)
    with staged(arguments.output_dir, name="surgery", last=PROJECTOR) as folder:
        split(checkpoint, folder)
        if (arguments.output_dir / TEXT).is_dir():
            shutil.rmtree(arguments.output_dir / TEXT)
    for name in (PROJECTOR, CLIP, TEXT):
        print(arguments.output_dir / name)


def split(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the three parts to ``folder``."""
    import torch

    from llava_export.package.tokenizer import write_tokenizer

    needs = checkpoint.weights.needs(checkpoint.build_model(max_context_len=1))
    for name, prefix in ((PROJECTOR, "vision_encoder.projector."), (CLIP, "vision_encoder.vision_tower.")):
        part = {checkpoint.weights.key(need): need for need in needs if need.fqn.startswith(prefix)}
        torch.save({key: checkpoint.weights.read_as_stored(need) for key, need in part.items()}, folder / name)
    text = folder / TEXT
    text.mkdir()
    text_needs = [need for need in needs if not need.fqn.startswith("vision_encoder.")]
    _write_text(checkpoint, text_needs, text)
    write_tokenizer(checkpoint.folder, text)
    (text / contract.TOKENIZER_BIN).unlink()
    config = _llama_config(checkpoint, dtype=checkpoint.weights.dtype(text_needs[0]))
    (text / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_text(checkpoint: Checkpoint, needs: Sequence[Need], folder: Path) -> None:
    """Sharded safetensors with their index, a shard in memory at a time."""
    from safetensors.torch import save_file

    shards = list(_shards(checkpoint, needs))
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensors = {_llama_name(need.fqn): checkpoint.weights.read(need).contiguous() for need in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        weight_map.update(dict.fromkeys(tensors, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(checkpoint: Checkpoint, needs: Sequence[Need]) -> Iterator[list[Need]]:
    shard: list[Need] = []
    size = 0
    for need in needs:
        num_bytes = math.prod(need.shape) * checkpoint.weights.dtype(need).itemsize
        if shard and size + num_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(need)
        size += num_bytes
    yield shard


def _llama_name(fqn: str) -> str:
    """Of our model's parameter in transformers' ``LlamaForCausalLM``."""
    for ours, theirs in (("token_embedding.", "model.embed_tokens."), ("text_decoder.lm_head.", "lm_head.")):
        if fqn.startswith(ours):
            return theirs + fqn.removeprefix(ours)
    return fqn.replace("text_decoder.", "model.", 1)


def _llama_config(checkpoint: Checkpoint, *, dtype: torch.dtype) -> dict[str, Any]:
    text = checkpoint.config.text
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": text.attention_bias,
        "bos_token_id": checkpoint.config.bos_id,
        "eos_token_id": checkpoint.config.eos_ids[0],
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "mlp_bias": text.mlp_bias,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": text.vocab_size,
    }


if __name__ == "__main__":
    main()
