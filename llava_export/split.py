"""Takes a checkpoint apart, for those who convert its parts with other tools.

Projector and vision tower are written as ``torch.save`` does (``llava.projector``, ``llava.clip``). The language model
becomes an ordinary Llama checkpoint that transformers and llama.cpp's own converter read. The original is not changed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.families.rope import rope_scaling_settings
from llava_export.models import names
from llava_export.staging import staged

PROJECTOR, CLIP, TEXT = PARTS = ("llava.projector", "llava.clip", "text-model")
SHARD_BYTES = 1 << 30  # of the language model; one shard is in memory at a time


def split(checkpoint: Checkpoint, output_dir: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the three parts of a checkpoint to ``output_dir``. Return their paths.

    Raises ``ExportError`` where something is in the way that no earlier run made, unless ``overwrite``.
    """
    tensors = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    with staged(
        output_dir, name="split", names=PARTS, last=PROJECTOR, inputs=checkpoint.paths, overwrite=overwrite
    ) as folder:
        for part, module in ((PROJECTOR, names.PROJECTOR), (CLIP, names.VISION_TOWER)):
            stored = {
                checkpoint.weights.key(tensor): checkpoint.weights.read_as_stored(tensor)
                for tensor in tensors
                if names.is_in(tensor.fqn, module)
            }
            torch.save(stored, folder / part)
        text = [tensor for tensor in tensors if not names.is_in(tensor.fqn, names.VISION_ENCODER)]
        _write_language_model(checkpoint, text, folder / TEXT)
    return [output_dir / part for part in PARTS]


def _write_language_model(checkpoint: Checkpoint, tensors: Sequence[CheckpointTensor], folder: Path) -> None:
    """Write config, tokenizer and weights: sharded safetensors with their index."""
    folder.mkdir()
    shards = list(_shards(checkpoint, tensors))
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        values = {_llama_name(tensor.fqn): checkpoint.weights.read(tensor).contiguous() for tensor in shard}
        save_file(values, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        weight_map.update(dict.fromkeys(values, file))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    _write_json(folder / "config.json", _llama_config(checkpoint, dtype=checkpoint.weights.dtype(tensors[0])))
    for name, content in checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)


def _shards(checkpoint: Checkpoint, tensors: Sequence[CheckpointTensor]) -> Iterator[list[CheckpointTensor]]:
    """Yield the tensors in groups of at most ``SHARD_BYTES``, or of one larger tensor."""
    shard: list[CheckpointTensor] = []
    size = 0
    for tensor in tensors:
        num_bytes = math.prod(tensor.shape) * checkpoint.weights.dtype(tensor).itemsize
        if shard and size + num_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += num_bytes
    yield shard


def _llama_name(fqn: str) -> str:
    """Return the name of a parameter in transformers' ``LlamaForCausalLM``."""
    for ours, theirs in ((names.TOKEN_EMBEDDING, "model.embed_tokens"), (names.LM_HEAD, "lm_head")):
        if names.is_in(fqn, ours):
            return theirs + fqn.removeprefix(ours)
    return fqn.replace(names.TEXT_DECODER, "model", 1)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _llama_config(checkpoint: Checkpoint, *, dtype: torch.dtype) -> dict[str, Any]:
    """Return the ``config.json`` of the language model, as transformers' ``LlamaForCausalLM`` reads it."""
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
        **rope_scaling_settings(text.rope_scaling),
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": text.vocab_size,
    }
