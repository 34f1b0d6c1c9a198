"""LLaVA-1.5 as published under llava-hf: ``LlavaForConditionalGeneration`` with a CLIP tower and a Llama decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_export.config import LlavaConfig, ProjectorConfig, TextConfig, VisionConfig
from llava_export.errors import ConfigError
from llava_export.families.family import Family
from llava_runner.contract import PromptTemplate

# The published 7B config leaves out what equals these defaults of transformers' LlamaConfig, CLIPVisionConfig and
# LlavaConfig (a model without any vision_config has CLIP-L/14 at 336 pixels).
LLAMA_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLIP_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
DEFAULT_TOWER: Mapping[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SELECT_STRATEGIES = ("default", "full")


def parse_config(config: Mapping[str, Any]) -> LlavaConfig:
    """``config.json`` as a dictionary to sizes; raises ``ConfigError`` for what this family's modules cannot be."""
    vision = _vision(config)
    text_section = _section(config, "text_config", {"model_type": "llama"}, defaults=LLAMA_DEFAULTS)
    text = _text(text_section, tied=config.get("tie_word_embeddings", False))
    return LlavaConfig(
        vision=vision,
        projector=ProjectorConfig(
            type="mlp",
            in_features=vision.feature_size,
            out_features=text.hidden_size,
            hidden_act=config.get("projector_hidden_act", "gelu"),
            bias=config.get("multimodal_projector_bias", True),
        ),
        text=text,
        bos_id=text_section["bos_token_id"],
        eos_ids=_ids(text_section["eos_token_id"]),
    )


def _section(config: Mapping[str, Any], name: str, absent: Mapping[str, Any], *, defaults: Mapping[str, Any]) -> dict:
    section = config.get(name) or absent
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} in config.json is not an object")
    return {**defaults, **{key: value for key, value in section.items() if value is not None}}


def _vision(config: Mapping[str, Any]) -> VisionConfig:
    section = _section(config, "vision_config", DEFAULT_TOWER, defaults=CLIP_DEFAULTS)
    if section.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ConfigError(f"vision tower {section['model_type']!r} is not supported; this family has clip_vision_model")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in SELECT_STRATEGIES:
        raise ConfigError(
            f"vision_feature_select_strategy {strategy!r} is not supported; choose from {', '.join(SELECT_STRATEGIES)}"
        )
    num_hidden_layers = section["num_hidden_layers"]
    return VisionConfig(
        **{name: section[name] for name in CLIP_DEFAULTS},
        # Negative indices count from the end of num_hidden_layers + 1 hidden states.
        feature_layers=tuple(
            layer if layer >= 0 else num_hidden_layers + 1 + layer
            for layer in _ids(config.get("vision_feature_layer", -2))
        ),
        keep_class_token=strategy == "full",
    )


def _text(section: Mapping[str, Any], *, tied: bool) -> TextConfig:
    if section.get("model_type", "llama") != "llama":
        raise ConfigError(f"language model {section['model_type']!r} is not supported; this family has llama")
    if section["hidden_act"] != "silu":
        raise ConfigError(f"text_config.hidden_act {section['hidden_act']!r} is not supported; Llama's is silu")
    # transformers 5 writes rope_parameters in place of rope_theta and rope_scaling.
    rope = {**(section.get("rope_scaling") or {}), **(section.get("rope_parameters") or {})}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ConfigError(f"rotary embedding of type {rope_type!r} is not supported; only the default one is")
    heads = section["num_attention_heads"]
    return TextConfig(
        hidden_size=section["hidden_size"],
        intermediate_size=section["intermediate_size"],
        num_hidden_layers=section["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=section.get("num_key_value_heads", heads),
        head_dim=section.get("head_dim", section["hidden_size"] // heads),
        vocab_size=section["vocab_size"],
        max_position_embeddings=section["max_position_embeddings"],
        rms_norm_eps=section["rms_norm_eps"],
        rope_theta=float(rope.get("rope_theta", section.get("rope_theta", 10000.0))),
        tie_word_embeddings=tied,
        attention_bias=section["attention_bias"],
        mlp_bias=section["mlp_bias"],
    )


def _ids(value: int | list[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


LLAVA_15 = Family(
    name="llava-1.5",
    model_types=("llava",),
    parse_config=parse_config,
    # Two layouts: as published, and as transformers 5 names its modules (no vision_model, everything under model).
    key_map=(
        (r"^(model\.)?vision_tower\.(vision_model\.)?encoder\.layers\.", "vision_encoder.vision_tower.layers."),
        (r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_encoder.vision_tower."),
        (r"^(model\.)?multi_modal_projector\.", "vision_encoder.projector."),
        (r"^(language_model\.model|model\.language_model)\.embed_tokens\.", "token_embedding."),
        (r"^(language_model\.model|model\.language_model)\.", "text_decoder."),
        (r"^(language_model\.)?lm_head\.", "text_decoder.lm_head."),
    ),
    unused_parameters=(r"vision_tower\.post_layernorm\.", r"\.position_ids$", r"\.rotary_emb\.inv_freq$"),
    prompt=PromptTemplate(
        system=(
            "A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        ),
        user="USER: ",
        assistant=" ASSISTANT:",
        image_suffix="\n",
    ),
    image_aspect_ratio="pad",
    question="What is in the image?",
)
