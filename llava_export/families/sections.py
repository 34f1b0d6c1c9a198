"""What the ``config.json`` of every family says of its Llama decoder and its CLIP tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_export.config import TextConfig, VisionConfig
from llava_export.errors import ConfigError

# Published configs leave out what equals these defaults of transformers' LlamaConfig and CLIPVisionConfig.
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
# openai/clip-vit-large-patch14-336, the tower of all published models.
CLIP_L_336: Mapping[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def llama_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """With defaults for what is left out."""
    return _with_defaults(section, LLAMA_DEFAULTS)


def text_config(section: Mapping[str, Any], *, tied: bool) -> TextConfig:
    """Of a ``llama_section``. Raises ``ConfigError``."""
    if section["hidden_act"] != "silu":
        raise ConfigError(
            f"the language model's hidden_act {section['hidden_act']!r} is not supported; Llama's is silu"
        )
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


def vision_config(
    section: Mapping[str, Any], *, feature_layers: int | list[int], keep_class_token: bool
) -> VisionConfig:
    """Of a CLIP tower's section, defaults left out. Negative layers count from the end. Raises ``ConfigError``."""
    section = _with_defaults(section, CLIP_DEFAULTS)
    if section.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ConfigError(f"vision tower {section['model_type']!r} is not supported; clip_vision_model is")
    num_hidden_layers = section["num_hidden_layers"]
    return VisionConfig(
        **{name: section[name] for name in CLIP_DEFAULTS},
        # Negative indices count from the end of num_hidden_layers + 1 hidden states.
        feature_layers=tuple(
            layer if layer >= 0 else num_hidden_layers + 1 + layer for layer in as_tuple(feature_layers)
        ),
        keep_class_token=keep_class_token,
    )


def as_tuple(value: int | list[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _with_defaults(section: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {**defaults, **{key: value for key, value in section.items() if value is not None}}
