"""Adapters to test with: random ones that ``peft`` writes, and the checkpoints that ``peft`` merges them to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from tests.checkpoints import SHAPES, TEXT, TINY_LLAVA, TOWER, VOCAB_SIZE, random_llava, randomize, save_checkpoint

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEARS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
# The config.json that LLaVA's training code writes beside an adapter.
LLAVA_CONFIG = {
    **TEXT,
    "model_type": "llava_llama",
    "vocab_size": VOCAB_SIZE,
    "mm_hidden_size": TOWER["hidden_size"],
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "tower",
}


@dataclass(frozen=True)
class Adapted:
    """The folders of an adapter, of the model that it was trained on, and of the checkpoint that peft merged."""

    adapter: Path
    base: Path
    merged: Path


def randomized(model: nn.Module, **options: Any) -> PeftModel:
    """Return a model with an adapter whose matrices, lengths and saved modules are random."""
    model.requires_grad_(True)
    adapted = get_peft_model(model, LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data.mul_(torch.empty_like(parameter).uniform_(0.7, 1.4))
        elif "lora_" in name:
            parameter.data.normal_(0, 0.1)
        elif parameter.requires_grad:  # saved as a whole
            parameter.data.add_(torch.randn_like(parameter) / 20)
    return adapted


def adapt_llava(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[Any], object] = lambda model: None,
    **options: Any,
) -> Adapted:
    """Save a random LLaVA in llava-hf's layout, an adapter for it, and both merged.

    ``prepare`` changes the model before the adapter is put on it.
    """
    model = random_llava(SHAPES["plain"]).to(dtype)
    save_checkpoint(model, folder / "base")
    torch.manual_seed(1)
    prepare(model)
    adapted = randomized(model, **options)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    save_checkpoint(adapted.merge_and_unload(), folder / "merged")
    return Adapted(folder / "adapter", folder / "base", folder / "merged")


def random_projector(*, seed: int) -> nn.Sequential:
    """Return a projector as LLaVA's own code builds it."""
    torch.manual_seed(seed)
    width = TEXT["hidden_size"]
    projector = nn.Sequential(nn.Linear(TOWER["hidden_size"], width), nn.GELU(), nn.Linear(width, width))
    randomize({name: parameter.data for name, parameter in projector.named_parameters()})
    return projector


def save_tower(folder: Path) -> Path:
    """Save a random vision tower. Return ``folder``."""
    torch.manual_seed(2)
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER)).requires_grad_(False)
    randomize(dict(tower.named_parameters()))
    tower.save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> LlamaForCausalLM:
    """Save a random language model without vision tower and projector, with a tokenizer. Return it."""
    torch.manual_seed(3)
    llama = LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=VOCAB_SIZE)).requires_grad_(False)
    randomize(dict(llama.named_parameters()))
    llama.save_pretrained(folder)
    shutil.copy(TINY_LLAVA / "tokenizer.model", folder)
    return llama


def adapt_original(folder: Path) -> Adapted:
    """Save what LLaVA's own training code does with LoRA: an adapter of a plain Llama, and a projector beside it."""
    llama = save_llama(folder / "base")
    save_tower(folder / "adapter" / "tower")
    llama.model.mm_projector = random_projector(seed=4)
    layers = [f"{name}$" for name in LINEARS]
    adapted = randomized(llama, r=8, lora_alpha=16, target_modules=rf".*\.layers\..*\.({'|'.join(layers)})")
    adapted.peft_config["default"].base_model_name_or_path = "lmsys/vicuna-of-nowhere"
    adapted.save_pretrained(folder / "adapter")
    trained = {
        name: parameter.detach().clone()
        for name, parameter in adapted.named_parameters()
        if "mm_projector" in name and "lora_" not in name
    }
    torch.save(trained, folder / "adapter" / "non_lora_trainables.bin")
    (folder / "adapter" / "config.json").write_text(json.dumps(LLAVA_CONFIG))
    merged = {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}
    (folder / "merged").mkdir()
    torch.save(merged, folder / "merged" / "pytorch_model.bin")
    for name in ("config.json", "tower"):
        source, target = folder / "adapter" / name, folder / "merged" / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.copy(TINY_LLAVA / "tokenizer.model", folder / "merged")
    return Adapted(folder / "adapter", folder / "base", folder / "merged")
