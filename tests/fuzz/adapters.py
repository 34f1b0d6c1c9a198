"""A small adapter to damage, and what is done with it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from llava_export.checkpoint.checkpoint import open_checkpoint

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
CONFIG = json.dumps(
    {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny-llava",
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": False,
        "rank_pattern": {r".*\.q_proj": 3},
        "alpha_pattern": {"v_proj": 8},
        "init_lora_weights": True,
    }
).encode()
MODULE = "base_model.model.model.language_model.layers.0.self_attn.v_proj"
WEIGHTS = save({f"{MODULE}.lora_A.weight": torch.ones(2, 256), f"{MODULE}.lora_B.weight": torch.ones(256, 2)})


def add_weights(folder: Path) -> None:
    """Write the weights."""
    (folder / WEIGHTS_NAME).write_bytes(WEIGHTS)


def add_config(folder: Path) -> None:
    """Write the config."""
    (folder / CONFIG_NAME).write_bytes(CONFIG)


def merge(path: Path) -> None:
    """Open the adapter, and read the weights of the layer that it changes."""
    checkpoint = open_checkpoint(str(path.parent))
    for tensor in checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1)):
        if "text_decoder.layers.0" in tensor.fqn:
            checkpoint.weights.read(tensor)
