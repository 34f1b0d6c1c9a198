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

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from tests.checkpoints import SHAPES, TEXT, TINY_LLAVA, TOWER, VOCAB_SIZE, random_llava, randomize, save_checkpoint

NEW_TOKENS = 5  # of the adapter with a grown vocabulary
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
    shape: str = "plain",
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[Any], object] = lambda model: None,
    **options: Any,
) -> Adapted:
    """Save a random LLaVA in llava-hf's layout, an adapter for it, and both merged.

    ``shape`` is a key of ``SHAPES``. ``prepare`` changes the model before the adapter is put on it.
    """
    model = random_llava(SHAPES[shape])
    model.to(dtype)  # type: ignore[arg-type]  # a decorator of transformers hides the types
    save_checkpoint(model, folder / "base")
    torch.manual_seed(1)
    prepare(model)
    adapted = randomized(model, **options)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(str(folder / "adapter"))
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
    adapted.save_pretrained(str(folder / "adapter"))
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


def adapt_attention(folder: Path) -> Adapted:
    """Save an adapter of all attention, and all biases. Some layers have another rank or alpha than the others."""
    return adapt_llava(
        folder,
        dtype=torch.float16,
        r=4,
        lora_alpha=6,
        target_modules=ATTENTION,
        bias="all",
        rank_pattern={r"layers\.1\.self_attn\.v_proj": 7},
        alpha_pattern={"language_model.layers.0.self_attn.q_proj": 20},
    )


def adapt_grown(folder: Path) -> Adapted:
    """Save a rank-stabilized adapter with a grown vocabulary, whose embedding and head are saved as a whole."""
    return adapt_llava(
        folder,
        dtype=torch.bfloat16,
        prepare=lambda model: model.resize_token_embeddings(VOCAB_SIZE + NEW_TOKENS, mean_resizing=False),
        r=8,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "linear_2"],
        modules_to_save=["embed_tokens", "lm_head"],
    )


def adapt_dora(folder: Path) -> Adapted:
    """Save an adapter with DoRA."""
    return adapt_llava(folder, r=4, use_dora=True, target_modules=["q_proj", "v_proj", "up_proj", "fc1", "lm_head"])


def adapt_embedding(folder: Path) -> Adapted:
    """Save an adapter of the embedding and a convolution, with the projector as a whole."""
    return adapt_llava(
        folder,
        r=4,
        target_modules=["embed_tokens", "patch_embedding"],
        modules_to_save=["multi_modal_projector"],
    )


def adapt_fused(folder: Path) -> Adapted:
    """Save an adapter of linears that are fused in the model, and of one that is not."""
    return adapt_llava(
        folder, shape="phi3", dtype=torch.bfloat16, r=6, target_modules=["qkv_proj", "gate_up_proj", "o_proj"]
    )


def adapt_fused_dora(folder: Path) -> Adapted:
    """Save an adapter with DoRA of linears that are fused in the model."""
    return adapt_llava(folder, shape="phi3", r=4, use_dora=True, target_modules=["qkv_proj", "gate_up_proj"])


KINDS = {
    "attention": adapt_attention,
    "original": adapt_original,
    "grown": adapt_grown,
    "dora": adapt_dora,
    "embedding": adapt_embedding,
    "fused": adapt_fused,
    "fused_dora": adapt_fused_dora,
}


def opened(adapted: Adapted) -> Checkpoint:
    """Return the checkpoint of an adapter whose base may be out of reach."""
    config = json.loads((adapted.adapter / "adapter_config.json").read_text())
    is_there = Path(config["base_model_name_or_path"]).is_dir()
    return open_checkpoint(str(adapted.adapter), base_model=None if is_there else str(adapted.base))


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all tensors that a model is made of, as they are read."""
    tensors = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    return {tensor.fqn: checkpoint.weights.read(tensor) for tensor in tensors}


def change_json(path: Path, **changes: object) -> None:
    """Change values of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
