"""Checkpoints to test with: random weights in the shapes and layouts that published models have."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from llava_export.builtin import CHECKPOINTS

TINY_LLAVA = CHECKPOINTS["tiny-llava"]
VOCAB_SIZE = 576  # the tiny tokenizer's pieces and some padding
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2}  # the tiny tokenizer's, which are Llama's


@dataclass(frozen=True)
class Shape:
    """A random LLaVA-1.5 checkpoint, by what it differs in from the plain one.

    ``language_model`` is transformers' config class of the decoder. ``text``, ``vision`` and ``whole`` are changed
    values of the configs of decoder, vision tower and whole model.
    ``tower`` is the class of the vision tower's config.
    """

    language_model: type[PreTrainedConfig] = LlamaConfig
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    tower: type[CLIPVisionConfig | SiglipVisionConfig] = CLIPVisionConfig


# As in SigLIP-so400m/14-384: heads of 72, an inner width that no group size divides, and pixels beyond the last patch.
SIGLIP: dict[str, Any] = {
    "hidden_size": 288,
    "intermediate_size": 269,
    "num_attention_heads": 4,
    "image_size": 62,
}

# Exports take a time for each layer. Of this tower one is used.
FEW_LAYERS = {"num_hidden_layers": 2}

SHAPES = {
    "plain": Shape(),
    "plain_twin": Shape(),  # other weights of the same shapes
    "grouped_query": Shape(text={"num_attention_heads": 8, "num_key_value_heads": 2}),
    "head_dim_80": Shape(text={"head_dim": 80, "num_attention_heads": 4}),
    "padded_vocabulary": Shape(text={"vocab_size": 640, "rope_theta": 5000.0}),
    "tied_head": Shape(text={"tie_word_embeddings": True}, whole={"tie_word_embeddings": True}),
    "biases": Shape(text={"attention_bias": True, "mlp_bias": True}, whole={"multimodal_projector_bias": False}),
    "last_layer_with_class_token": Shape(whole={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
    "deep": Shape(text={"num_hidden_layers": 4}, vision={"num_hidden_layers": 5}),
    "deep_with_biases_and_tied_head": Shape(
        text={
            "tie_word_embeddings": True,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "mlp_bias": True,
        },
        vision={"num_hidden_layers": 5},
        whole={
            "tie_word_embeddings": True,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
    ),
    "several_feature_layers": Shape(vision={"hidden_act": "gelu"}, whole={"vision_feature_layer": [-3, -2]}),
    "siglip": Shape(
        text={"num_hidden_layers": 4},
        vision={**SIGLIP, "num_hidden_layers": 4, "vision_use_head": False},
        whole={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
        tower=SiglipVisionConfig,
    ),
    "siglip_without_first_patch": Shape(text={"num_hidden_layers": 1}, vision=SIGLIP, tower=SiglipVisionConfig),
    "siglip_several_feature_layers": Shape(
        text={"num_hidden_layers": 1},
        vision={**SIGLIP, "image_size": 45, "patch_size": 15, "hidden_act": "gelu"},
        whole={"vision_feature_layer": [1, -2, -1], "vision_feature_select_strategy": "full"},
        tower=SiglipVisionConfig,
    ),
    # Both are scaled from a context of 16 positions, which an image alone fills.
    "linear_rope": Shape(
        text={"max_position_embeddings": 64, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
    ),
    "llama3_rope": Shape(
        text={
            "max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
                "rope_theta": 500.0,
            },
        },
    ),
    # Heads that together are wider than the model, as in Mistral-Nemo.
    "mistral": Shape(
        MistralConfig,
        text={"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 128, "sliding_window": 768},
    ),
    "qwen2": Shape(
        Qwen2Config,
        text={"num_hidden_layers": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, **SPECIAL_IDS},
        whole={"tie_word_embeddings": True},
    ),
    "phi3": Shape(Phi3Config, text={"hidden_size": 384, "intermediate_size": 512, **SPECIAL_IDS, "pad_token_id": None}),
    "shallow": Shape(text={"num_hidden_layers": 1}, vision=FEW_LAYERS),
    # Those that can be odd in one checkpoint, for tests that export it.
    "odd_sizes": Shape(
        text={
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 80,
            "vocab_size": 640,
            "rope_theta": 5000.0,
        },
        vision=FEW_LAYERS,
    ),
}


@dataclass(frozen=True)
class MobileVlmShape:
    """A random MobileVLM checkpoint.

    ``projector`` is its ``mm_projector_type``, and ``text`` are changed values of the decoder's config.
    """

    projector: str
    text: dict[str, Any] = field(default_factory=dict)


MOBILEVLM_SHAPES = {
    "mobilevlm": MobileVlmShape("ldpnet"),
    "mobilevlm_v2": MobileVlmShape("ldpnetv2"),
    "mobilevlm_v2_head_dim_80": MobileVlmShape(
        "ldpnetv2", {"hidden_size": 640, "num_attention_heads": 8, "num_hidden_layers": 1}
    ),
}
# The configs of the plain vision tower and decoder.
TOWER: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TEXT: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-6,
}


def llava_config(shape: Shape) -> LlavaConfig:
    """Return transformers' config of a shape."""
    return LlavaConfig(
        vision_config=shape.tower(**{**TOWER, **shape.vision}),
        text_config=shape.language_model(**{**TEXT, "rms_norm_eps": 1e-5, "vocab_size": VOCAB_SIZE, **shape.text}),
        **{"image_token_index": VOCAB_SIZE - 1, **shape.whole},
    )


def random_llava(shape: Shape, *, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return a model with random weights.

    They are larger than those that transformers starts with. So a mistake in any operation changes the output.
    """
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(llava_config(shape)).eval().requires_grad_(False)
    randomize(dict(model.named_parameters()))
    return model


def randomize(parameters: dict[str, Tensor]) -> None:
    """Fill parameters, given by name, with random values that keep the scale of activations."""
    for name, parameter in parameters.items():
        if parameter.dim() > 1:
            parameter.normal_(0, 1 / parameter[0].numel() ** 0.5)
        elif name.endswith(".weight"):  # a norm's
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(0, 0.1)


def ldp_shapes(projector: str, *, features: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a published projector's tensors by name, without ``model.mm_projector.``."""
    shapes: dict[str, tuple[int, ...]]
    mlp = {"0": (width, features), "2": (width, width)}
    if projector == "ldpnetv2":
        shapes = {f"mlp.mlp.{i}.weight": shape for i, shape in mlp.items()}
        shapes |= {f"mlp.mlp.{i}.bias": (width,) for i in mlp}
        return shapes | {"peg.peg.0.weight": (width, 1, 3, 3), "peg.peg.0.bias": (width,)}
    shapes = {f"model.mlp.{int(i) + 1}.weight": shape for i, shape in mlp.items()}
    shapes |= {f"model.mlp.{int(i) + 1}.bias": (width,) for i in mlp}
    for i in (1, 2):
        block = f"model.mb_block.{i}.block"
        shapes |= {f"{block}.0.0.weight": (width, 1, 3, 3), f"{block}.2.0.weight": (width, width, 1, 1)}
        shapes |= {f"{block}.{norm}.{what}": (width,) for norm in ("0.1", "2.1") for what in ("weight", "bias")}
        shapes |= {f"{block}.1.fc1.weight": (width // 4, width, 1, 1), f"{block}.1.fc1.bias": (width // 4,)}
        shapes |= {f"{block}.1.fc2.weight": (width, width // 4, 1, 1), f"{block}.1.fc2.bias": (width,)}
    return shapes


def random_ldp(projector: str, *, features: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Return a published projector's tensors with random values, by name without ``model.mm_projector.``."""
    torch.manual_seed(seed)
    tensors = {
        name: torch.empty(shape) for name, shape in ldp_shapes(projector, features=features, width=width).items()
    }
    randomize(tensors)
    return tensors


def save_mobilevlm(shape: MobileVlmShape, folder: Path, *, seed: int = 0) -> Path:
    """Save a random checkpoint in the layout of MobileVLM's authors, vision tower included. Return ``folder``."""
    torch.manual_seed(seed)
    text = {**TEXT, **shape.text, "vocab_size": 512}
    decoder = LlamaForCausalLM(LlamaConfig(**text)).requires_grad_(False)
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER)).requires_grad_(False)
    for part in (decoder, tower):
        randomize(dict(part.named_parameters()))
    projector = random_ldp(shape.projector, features=TOWER["hidden_size"], width=text["hidden_size"], seed=seed)
    tensors = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    tensors |= {f"model.mm_projector.{name}": tensor for name, tensor in projector.items()}
    inside = "model.vision_tower.vision_tower.vision_model."
    tensors |= {inside + name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    folder.mkdir(parents=True)
    torch.save({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    config = {
        **text,
        "model_type": "mobilevlm",
        "mm_hidden_size": TOWER["hidden_size"],
        "mm_projector_type": shape.projector,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "tower",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tower").mkdir()
    (folder / "tower" / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **TOWER}))
    shutil.copy(TINY_LLAVA / "tokenizer.model", folder)
    return folder


def save_language_model(shape: Shape, folder: Path, *, seed: int = 0) -> Path:
    """Save the decoder of a shape as a random language model alone, with the tiny tokenizer. Return ``folder``."""
    torch.manual_seed(seed)
    config = shape.language_model(**{**TEXT, "vocab_size": VOCAB_SIZE, **shape.text})
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    randomize(dict(model.named_parameters()))
    return save_checkpoint(model, folder)


def save_checkpoint(model: PreTrainedModel, folder: Path, **kwargs: Any) -> Path:
    """Save a model as a user has it: transformers' files and a tokenizer. Return ``folder``."""
    model.save_pretrained(folder, **kwargs)
    shutil.copy(TINY_LLAVA / "tokenizer.model", folder)
    return folder
