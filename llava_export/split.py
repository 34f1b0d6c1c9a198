"""Takes a checkpoint apart, for those who convert its parts with other tools.

Projector and vision tower are written as ``torch.save`` does (``llava.projector``, ``llava.clip``). The language model
becomes an ordinary checkpoint of its own, which transformers and llama.cpp's own converter read. The original is not
changed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llava_export.checkpoint.byte_level import ByteLevelTokenizer
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.config import TextConfig
from llava_export.families.language_models import LANGUAGE_MODELS
from llava_export.families.rope import rope_scaling_settings
from llava_export.models import names
from llava_export.models.llama import fused_parts
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
    text = checkpoint.config.text
    stored: dict[str, list[CheckpointTensor]] = {}  # by the name in transformers, which may be that of a fused linear
    for tensor in tensors:
        stored.setdefault(_stored_name(tensor.fqn, text), []).append(tensor)
    shards = list(_shards(checkpoint, stored))
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        values = {name: torch.cat([checkpoint.weights.read(it) for it in stored[name]]).contiguous() for name in shard}
        save_file(values, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        weight_map.update(dict.fromkeys(values, file))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    _write_json(folder / "config.json", _text_config(checkpoint, dtype=checkpoint.weights.dtype(tensors[0])))
    for name, content in checkpoint.tokenizer.files.items():
        (folder / name).write_bytes(content)
    if isinstance(checkpoint.tokenizer, ByteLevelTokenizer):
        _write_json(folder / "tokenizer_config.json", _tokenizer_settings(checkpoint.tokenizer))


def _tokenizer_settings(tokenizer: ByteLevelTokenizer) -> dict[str, Any]:
    """Return the ``tokenizer_config.json`` of a byte-level BPE: what its ``tokenizer.json`` does not say."""
    names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    added = {str(token.id): {**asdict(token), "single_word": False} for token in tokenizer.rules.added_tokens}
    for token in added.values():
        del token["id"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokenizer.text(token_id) if token_id >= 0 else None for name, token_id in names.items()},
        "added_tokens_decoder": added,
    }


def _shards(checkpoint: Checkpoint, stored: Mapping[str, Sequence[CheckpointTensor]]) -> Iterator[list[str]]:
    """Yield the names of tensors in groups of at most ``SHARD_BYTES``, or of one larger tensor."""
    shard: list[str] = []
    size = 0
    for name, parts in stored.items():
        num_bytes = sum(math.prod(part.shape) * checkpoint.weights.dtype(part).itemsize for part in parts)
        if shard and size + num_bytes > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += num_bytes
    yield shard


def _stored_name(fqn: str, text: TextConfig) -> str:
    """Return the name of a parameter in transformers' model of its kind. Parts of a fused linear have one name."""
    for ours, theirs in ((names.TOKEN_EMBEDDING, "model.embed_tokens"), (names.LM_HEAD, "lm_head")):
        if names.is_in(fqn, ours):
            return theirs + fqn.removeprefix(ours)
    fqn = fqn.replace(names.TEXT_DECODER, "model", 1)
    if LANGUAGE_MODELS[text.model_type].is_fused:
        for linear, parts in fused_parts(text).items():
            parent, _, _ = linear.rpartition(".")
            fqn = re.sub(rf"\.{re.escape(parent)}\.({'|'.join(parts)})\.", f".{linear}.", fqn)
    return fqn


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _text_config(checkpoint: Checkpoint, *, dtype: torch.dtype) -> dict[str, Any]:
    """Return the ``config.json`` of the language model, as transformers' class of it reads it."""
    text = checkpoint.config.text
    language_model = LANGUAGE_MODELS[text.model_type]
    options = {option: getattr(text, name) for name, option in language_model.biases.items() if isinstance(option, str)}
    if language_model.has_window_options:
        options["use_sliding_window"] = text.sliding_window is not None
    return {
        "architectures": [language_model.architecture],
        "model_type": text.model_type,
        "bos_token_id": checkpoint.config.bos_id,
        "eos_token_id": checkpoint.config.eos_ids[0],
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "pad_token_id": None,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        **rope_scaling_settings(text.rope_scaling),
        "sliding_window": text.sliding_window,
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": text.vocab_size,
        **options,
    }
