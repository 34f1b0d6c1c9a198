"""LLaVA-1.5 in two layouts: llava-hf's (``LlavaForConditionalGeneration``) and that of LLaVA's authors.

The authors' layout also has LLaVA-1, whose projector is one linear and whose tower CLIP-L/14 at 224 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llava_export.config import LlavaConfig, TextConfig, VisionConfig, checked_choice
from llava_export.errors import check_all
from llava_export.families import original
from llava_export.families.family import Family
from llava_export.families.language_models import LLAVA_TYPES, language_model_of
from llava_export.families.prompts import VICUNA_V1
from llava_export.families.sections import (
    CLIP_L_336,
    UNUSED_PARAMETERS,
    check_padding,
    llava_config,
    text_config,
    vision_config,
)
from llava_export.models.names import LM_HEAD, PROJECTOR, TEXT_DECODER, TOKEN_EMBEDDING, VISION_TOWER
from llava_runner.documents import JsonObject

SELECT_STRATEGIES = ("default", "full")


def parse_config(config: JsonObject, tower: JsonObject | None) -> LlavaConfig:
    """Return the sizes that llava-hf's ``config.json`` gives. Raises ``ConfigError`` for what cannot be computed.

    ``tower`` is None: this layout's ``config.json`` also describes the vision tower.
    """
    name = "vision_feature_select_strategy"
    strategy = partial(checked_choice, name, config.text(name, "default"), SELECT_STRATEGIES)
    vision = partial(_vision, config, strategy)
    described = config.section("text_config", {})
    text = partial(_text, config, described)
    check_all(strategy, vision, text)
    model = llava_config(
        vision(),
        text(),
        language_model_of(described).section(described),
        projector_type="mlp",
        projector_act=config.text("projector_hidden_act", "gelu"),
        projector_bias=config.flag("multimodal_projector_bias", True),
    )
    check_padding(config, model.text)
    return model


def _vision(config: JsonObject, strategy: Callable[[], str]) -> VisionConfig:
    """Return the vision tower's sizes. ``strategy`` returns which of its features are read."""
    described = config.section("vision_config", {})
    return vision_config(
        described if described else described.with_defaults(CLIP_L_336),
        feature_layers=config.integers("vision_feature_layer", -2),
        keep_first_row=strategy() == "full",
    )


def _text(config: JsonObject, described: JsonObject) -> TextConfig:
    """Return the decoder's sizes, of which ``described`` says most. The whole model, too, may say that it is tied."""
    language_model = language_model_of(described)
    section = language_model.section(described)
    tied = config.flag("tie_word_embeddings", False) or section.flag("tie_word_embeddings")
    return text_config(section, language_model=language_model, tied=tied)


LLAVA_15 = Family(
    name="llava-1.5",
    model_types=("llava",),
    parse_config=parse_config,
    # Two spellings of the keys: as published, and as transformers 5 names its modules. The latter have no vision_model,
    # and everything is under model.
    key_map=(
        (r"^(model\.)?vision_tower\.(vision_model\.)?encoder\.layers\.", f"{VISION_TOWER}.layers."),
        (r"^(model\.)?vision_tower\.(vision_model\.)?", f"{VISION_TOWER}."),
        (r"^(model\.)?multi_modal_projector\.", f"{PROJECTOR}."),
        (r"^(language_model\.model|model\.language_model)\.embed_tokens\.", f"{TOKEN_EMBEDDING}."),
        (r"^(language_model\.model|model\.language_model)\.", f"{TEXT_DECODER}."),
        (r"^(language_model\.)?lm_head\.", f"{LM_HEAD}."),
    ),
    unused_parameters=UNUSED_PARAMETERS,
    prompt=VICUNA_V1,
    chunks_are_texts=False,
    image_aspect_ratio="pad",
    question="What is in the image?",
)

LLAVA_15_ORIGINAL = original.family(
    name="llava-1.5",
    model_types=("llava", *LLAVA_TYPES, "share4v"),
    projectors=("mlp2x_gelu", "linear"),
    markers=("mm_projector_type", "mm_vision_tower", "mm_hidden_size"),
    prompt=VICUNA_V1,
    question="What is in the image?",
)
