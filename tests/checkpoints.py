"""Checkpoints to test with: random ones made by transformers, in the shapes that LLaVA models come in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_export.builtin import CHECKPOINTS

TINY_LLAVA = CHECKPOINTS["tiny-llava"]
VOCAB_SIZE = 576  # the tiny tokenizer's pieces and some padding


@dataclass(frozen=True)
class Shape:
    """What a random checkpoint differs in from the plain one."""

    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)


SHAPES = {
    "plain": Shape(),
    "plain_twin": Shape(),  # other weights of the same shapes
    "grouped_query": Shape(text={"num_attention_heads": 8, "num_key_value_heads": 2}),
    "head_dim_80": Shape(text={"head_dim": 80, "num_attention_heads": 4}),
    "padded_vocabulary": Shape(text={"vocab_size": 640, "rope_theta": 5000.0}),
    "tied_head": Shape(text={"tie_word_embeddings": True}, whole={"tie_word_embeddings": True}),
    "biases": Shape(text={"attention_bias": True, "mlp_bias": True}, whole={"multimodal_projector_bias": False}),
    "last_layer_with_class_token": Shape(whole={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}),
    "deep": Shape(text={"num_hidden_layers": 5}, vision={"num_hidden_layers": 5}),
    "deep_with_biases": Shape(
        text={
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attention_bias": True,
            "mlp_bias": True,
        },
        vision={"num_hidden_layers": 5},
        whole={"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    ),
    "several_feature_layers": Shape(vision={"hidden_act": "gelu"}, whole={"vision_feature_layer": [-3, -2]}),
}


def llava_config(shape: Shape) -> LlavaConfig:
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            **{
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                **shape.vision,
            }
        ),
        text_config=LlamaConfig(
            **{
                "hidden_size": 256,
                "intermediate_size": 384,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "vocab_size": VOCAB_SIZE,
                "rms_norm_eps": 1e-5,
                **shape.text,
            }
        ),
        **{"image_token_index": VOCAB_SIZE - 1, **shape.whole},
    )


def random_llava(shape: Shape, *, seed: int = 0) -> LlavaForConditionalGeneration:
    """Weights spread enough that every operation shows in the output, unlike transformers' cautious start."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(llava_config(shape)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 1 / parameter[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        else:
            parameter.normal_(0, 0.1)
    return model


def save_checkpoint(model: LlavaForConditionalGeneration, folder: Path, **kwargs: Any) -> Path:
    """As a user would have it: transformers' files and a tokenizer."""
    model.save_pretrained(folder, **kwargs)
    shutil.copy(TINY_LLAVA / "tokenizer.model", folder)
    return folder
