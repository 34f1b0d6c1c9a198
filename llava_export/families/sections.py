"""What all families share: sections of ``config.json`` about a language model and a vision tower."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from llava_export.config import (
    MAX_LAYERS,
    NONE,
    LlavaConfig,
    ProjectorConfig,
    TextConfig,
    VisionConfig,
    check_token_ids,
    checked_choice,
)
from llava_export.errors import ConfigError, check_all
from llava_export.families.language_models import LanguageModel
from llava_export.families.rope import context_length, rope_settings
from llava_export.models.names import VISION_TOWER
from llava_runner.contract import MAX_CONTEXT
from llava_runner.documents import JsonObject, shown

# The sizes in each section, and the defaults of transformers' CLIPVisionConfig and SiglipVisionConfig. Published
# configs leave out values that equal them. Those of language models are in ``families.language_models``.
TEXT_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
)  # fmt: skip
TOWER_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
)  # fmt: skip
CLIP_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SIGLIP_DEFAULTS: Mapping[str, Any] = {
    **CLIP_DEFAULTS,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
# By the type of the tower, which is clip_vision_model where a section leaves it out.
TOWER_DEFAULTS = {"clip_vision_model": CLIP_DEFAULTS, "siglip_vision_model": SIGLIP_DEFAULTS}
FULL, SLIDING = "full_attention", "sliding_attention"  # values of layer_types
NO_PADDING = -1  # a pad_token_id that old configs have
# Published towers: openai/clip-vit-large-patch14-336, that of LLaVA-1.5 and MobileVLM, the one of LLaVA-1, and
# google/siglip-so400m-patch14-384.
CLIP_L_336: Mapping[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
CLIP_L_224: Mapping[str, Any] = {**CLIP_L_336, "image_size": 224}
SIGLIP_SO400M_384: Mapping[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


# Patterns of tensors that checkpoints have and no model uses, under the model's names: the norm after a tower's last
# layer and SigLIP's head that pools, whose outputs LLaVA does not read, and tables that are computed here.
UNUSED_PARAMETERS = (
    "^" + re.escape(VISION_TOWER) + r"\.(post_layernorm|head)\.",
    r"\.position_ids$",
    r"\.rotary_emb\.inv_freq$",
)


def llava_config(
    vision: VisionConfig,
    text: TextConfig,
    section: JsonObject,
    *,
    projector_type: str,
    projector_act: str,
    projector_bias: bool,
) -> LlavaConfig:
    """Return the sizes of a whole model. ``section`` is that of the language model. Raises ``ConfigError``."""
    projector = ProjectorConfig(
        type=projector_type,
        in_features=vision.feature_size,
        out_features=text.hidden_size,
        hidden_act=projector_act,
        bias=projector_bias,
        grid_side=vision.grid_side,
    )
    return with_special_ids(vision, projector, text, section)


def with_special_ids(
    vision: VisionConfig | None, projector: ProjectorConfig | None, text: TextConfig, section: JsonObject
) -> LlavaConfig:
    """Return the sizes of a model with the special tokens of a language model's ``section``. Raises ``ConfigError``."""
    check_padding(section, text)
    return LlavaConfig(
        vision=vision,
        projector=projector,
        text=text,
        bos_id=NONE if section.get("bos_token_id") is None else section.integer("bos_token_id", least=0),
        eos_ids=() if section.get("eos_token_id") is None else section.integers("eos_token_id"),
    )


def check_padding(section: JsonObject, text: TextConfig) -> None:
    """Raise ``ConfigError`` unless the section's padding token, if it has one, is in the vocabulary."""
    pad_id = section.integer("pad_token_id", NO_PADDING)
    if pad_id != NO_PADDING:
        check_token_ids("pad_token_id", pad_id, vocab_size=text.vocab_size)


def text_config(section: JsonObject, *, language_model: LanguageModel, tied: bool) -> TextConfig:
    """Return the decoder's sizes. ``section`` is ``language_model``'s, with its defaults. Raises ``ConfigError``."""
    window = partial(_window, section, has_options=language_model.has_window_options)
    check_all(partial(_check_act, section), partial(rope_settings, section), window)
    rope_theta, rope_scaling = rope_settings(section)
    sizes: dict[str, Any] = {name: section.integer(name) for name in TEXT_SIZES}
    heads, hidden_size = sizes["num_attention_heads"], sizes["hidden_size"]
    if section.get("head_dim") is None and (heads < 1 or hidden_size % heads):
        raise ConfigError(f"text_config: num_attention_heads {heads} does not divide hidden_size {hidden_size}")
    biases = {
        name: section.flag(option) if isinstance(option, str) else option
        for name, option in language_model.biases.items()
    }
    return TextConfig(
        **sizes,
        **biases,
        model_type=language_model.model_type,
        max_position_embeddings=context_length(section),
        num_key_value_heads=section.integer("num_key_value_heads", heads),
        head_dim=section.integer("head_dim", hidden_size // max(1, heads)),
        rms_norm_eps=section.number("rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=tied,
        sliding_window=window(),
    )


def _check_act(section: JsonObject) -> None:
    """Raise ``ConfigError`` unless the activation is Llama's, which all language models here have."""
    if section["hidden_act"] != "silu":
        raise ConfigError(f"the language model's hidden_act {shown(section['hidden_act'])} is not supported; silu is")


def _window(section: JsonObject, *, has_options: bool) -> int | None:
    """Return how many positions attention sees, or None if all layers see all. Raises ``ConfigError``.

    Where there are options, they say which layers have a window: those from ``max_window_layers`` on, or, in files of
    transformers 5, what ``layer_types`` says of each.
    """
    if section.get("sliding_window") is None:
        return None
    window = section.integer("sliding_window", least=1, most=MAX_CONTEXT)
    if not has_options:
        return window
    first = section.integer("max_window_layers", 0)
    layers = section.integer("num_hidden_layers")
    types = section.items_of("layer_types", [FULL if i < first else SLIDING for i in range(min(layers, MAX_LAYERS))])
    for layer_type in types:
        checked_choice(section.where("layer_types"), layer_type, (FULL, SLIDING))
    return window if section.flag("use_sliding_window", True) and SLIDING in types else None


def vision_config(section: JsonObject, *, feature_layers: tuple[int, ...], keep_first_row: bool) -> VisionConfig:
    """Return the sizes of a vision tower whose section may leave out defaults. Raises ``ConfigError``.

    ``feature_layers`` are indices into the hidden states, of which there is one more than layers. Negative ones count
    from the end. ``VisionConfig`` explains ``keep_first_row``.
    """
    tower_type = section.get("model_type", "clip_vision_model")
    if not isinstance(tower_type, str) or tower_type not in TOWER_DEFAULTS:
        raise ConfigError(f"vision tower {shown(tower_type)} is not supported; choose from {', '.join(TOWER_DEFAULTS)}")
    section = section.with_defaults(TOWER_DEFAULTS[tower_type])
    if section.integer("num_channels") != 3:
        raise ConfigError(f"the vision tower reads {section['num_channels']} channels; images have 3: RGB")
    sizes = {name: section.integer(name) for name in TOWER_SIZES}
    num_states = sizes["num_hidden_layers"] + 1
    layers = tuple(layer if layer >= 0 else num_states + layer for layer in feature_layers)
    if section.flag("tie_last_hidden_states", False) and sizes["num_hidden_layers"] in layers:
        raise ConfigError(
            f"{section.where('tie_last_hidden_states')} is true: the last layer is read behind another norm, which is "
            "not supported"
        )
    return VisionConfig(
        type=tower_type,
        **sizes,
        hidden_act=section.text("hidden_act"),
        layer_norm_eps=section.number("layer_norm_eps"),
        feature_layers=layers,
        keep_first_row=keep_first_row,
    )
