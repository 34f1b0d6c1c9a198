"""What all families share: sections of ``config.json`` about a Llama decoder and a CLIP vision tower."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llava_export.config import LlavaConfig, ProjectorConfig, TextConfig, VisionConfig
from llava_export.errors import ConfigError
from llava_export.models.names import VISION_TOWER

# Published configs leave out values that equal these defaults of transformers' LlamaConfig and CLIPVisionConfig.
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


# Patterns of tensors that checkpoints have and no model uses, under the model's names: the norm after CLIP's last
# layer, whose output LLaVA does not read, and tables that are computed here.
UNUSED_PARAMETERS = (
    "^" + re.escape(f"{VISION_TOWER}.post_layernorm."),
    r"\.position_ids$",
    r"\.rotary_emb\.inv_freq$",
)


def as_section(value: Any, *, where: str) -> Mapping[str, Any]:
    """Return ``value`` if it is a JSON object. Otherwise raise ``ConfigError``, which says ``where`` it stands."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is not an object")
    return value


def llama_section(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section about a Llama decoder, with defaults for what it leaves out."""
    return _with_defaults(section, LLAMA_DEFAULTS)


def llava_config(
    vision: VisionConfig,
    section: Mapping[str, Any],
    *,
    tied: bool,
    projector_type: str,
    projector_act: str,
    projector_bias: bool,
) -> LlavaConfig:
    """Return the sizes of a whole model. ``section`` is a ``llama_section``. Raises ``ConfigError``.

    ``tied`` says that the decoder's head has the weights of the token embedding.
    """
    text = text_config(section, tied=tied)
    projector = ProjectorConfig(
        type=projector_type,
        in_features=vision.feature_size,
        out_features=text.hidden_size,
        hidden_act=projector_act,
        bias=projector_bias,
        grid_side=vision.grid_side,
    )
    return LlavaConfig(
        vision=vision,
        projector=projector,
        text=text,
        bos_id=section["bos_token_id"],
        eos_ids=as_tuple(section["eos_token_id"]),
    )


def text_config(section: Mapping[str, Any], *, tied: bool) -> TextConfig:
    """Return the decoder's sizes. ``section`` is a ``llama_section``. Raises ``ConfigError``."""
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
    """Return the sizes of a CLIP vision tower whose section may leave out defaults. Raises ``ConfigError``.

    ``feature_layers`` are indices into the hidden states, of which there is one more than layers. Negative ones count
    from the end.
    """
    section = _with_defaults(section, CLIP_DEFAULTS)
    if section.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ConfigError(f"vision tower {section['model_type']!r} is not supported; clip_vision_model is")
    num_hidden_layers = section["num_hidden_layers"]
    return VisionConfig(
        **{name: section[name] for name in CLIP_DEFAULTS},
        feature_layers=tuple(
            layer if layer >= 0 else num_hidden_layers + 1 + layer for layer in as_tuple(feature_layers)
        ),
        keep_class_token=keep_class_token,
    )


def as_tuple(value: int | list[int]) -> tuple[int, ...]:
    """Return one number or several as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _with_defaults(section: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a section with defaults for keys that are missing or null."""
    return {**defaults, **{key: value for key, value in section.items() if value is not None}}
