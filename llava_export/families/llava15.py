"""LLaVA-1.5, as llava-hf publishes it (``LlavaForConditionalGeneration``) and as its authors do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_export.config import LlavaConfig, ProjectorConfig
from llava_export.errors import ConfigError
from llava_export.families import original
from llava_export.families.family import Family
from llava_export.families.sections import CLIP_L_336, as_tuple, llama_section, text_config, vision_config
from llava_export.models.names import LM_HEAD, PROJECTOR, TEXT_DECODER, TOKEN_EMBEDDING, VISION_TOWER
from llava_runner.contract import PromptTemplate

SELECT_STRATEGIES = ("default", "full")

VICUNA_V1 = PromptTemplate(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
    user="USER: ",
    assistant=" ASSISTANT:",
    image_suffix="\n",
)


def parse_config(config: Mapping[str, Any], tower: Mapping[str, Any] | None) -> LlavaConfig:
    """``config.json`` to sizes; raises ``ConfigError`` for what this family's modules cannot be.

    ``tower`` is None: this family's config has the tower's.
    """
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in SELECT_STRATEGIES:
        raise ConfigError(
            f"vision_feature_select_strategy {strategy!r} is not supported; choose from {', '.join(SELECT_STRATEGIES)}"
        )
    vision = vision_config(
        _section(config, "vision_config", absent=CLIP_L_336),
        feature_layers=config.get("vision_feature_layer", -2),
        keep_class_token=strategy == "full",
    )
    section = llama_section(_section(config, "text_config", absent={}))
    if section.get("model_type", "llama") != "llama":
        raise ConfigError(f"language model {section['model_type']!r} is not supported; this family has llama")
    text = text_config(section, tied=config.get("tie_word_embeddings", False))
    return LlavaConfig(
        vision=vision,
        projector=ProjectorConfig(
            type="mlp",
            in_features=vision.feature_size,
            out_features=text.hidden_size,
            hidden_act=config.get("projector_hidden_act", "gelu"),
            bias=config.get("multimodal_projector_bias", True),
            grid_side=vision.grid_side,
        ),
        text=text,
        bos_id=section["bos_token_id"],
        eos_ids=as_tuple(section["eos_token_id"]),
    )


def _section(config: Mapping[str, Any], name: str, *, absent: Mapping[str, Any]) -> Mapping[str, Any]:
    section = config.get(name) or absent
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name} in config.json is not an object")
    return section


LLAVA_15 = Family(
    name="llava-1.5",
    model_types=("llava",),
    parse_config=parse_config,
    # Two layouts: as published, and as transformers 5 names its modules (no vision_model, everything under model).
    key_map=(
        (r"^(model\.)?vision_tower\.(vision_model\.)?encoder\.layers\.", f"{VISION_TOWER}.layers."),
        (r"^(model\.)?vision_tower\.(vision_model\.)?", f"{VISION_TOWER}."),
        (r"^(model\.)?multi_modal_projector\.", f"{PROJECTOR}."),
        (r"^(language_model\.model|model\.language_model)\.embed_tokens\.", f"{TOKEN_EMBEDDING}."),
        (r"^(language_model\.model|model\.language_model)\.", f"{TEXT_DECODER}."),
        (r"^(language_model\.)?lm_head\.", f"{LM_HEAD}."),
    ),
    unused_parameters=(r"vision_tower\.post_layernorm\.", r"\.position_ids$", r"\.rotary_emb\.inv_freq$"),
    prompt=VICUNA_V1,
    image_aspect_ratio="pad",
    question="What is in the image?",
)

LLAVA_15_ORIGINAL = original.family(
    name="llava-1.5",
    model_types=("llava", "llava_llama"),
    projectors=("mlp2x_gelu",),
    marker="mm_projector_type",
    prompt=VICUNA_V1,
    question="What is in the image?",
)
