"""Checkpoints in the layout of LLaVA's own training code. MobileVLM's code descends from it and writes the same layout.

The decoder's keys are those of a checkpoint of the language model alone. The projector's are under
``model.mm_projector``. The vision tower's are under ``model.vision_tower``, or in a checkpoint of its own that
``mm_vision_tower`` in ``config.json`` names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from llava_export.config import LlavaConfig, VisionConfig, checked_choice
from llava_export.errors import ConfigError, check_all
from llava_export.families.family import Family
from llava_export.families.language_models import original_language_model
from llava_export.families.prompts import ChatPrompt
from llava_export.families.sections import (
    CLIP_L_336,
    UNUSED_PARAMETERS,
    llava_config,
    text_config,
    vision_config,
)
from llava_export.models.names import LM_HEAD, PROJECTOR, TEXT_DECODER, TOKEN_EMBEDDING, VISION_TOWER
from llava_runner.documents import JsonObject, shown

# Read each pair as (pattern of the published key, the model's name). No two projectors share a key, so the keys tell
# which projector a checkpoint has.
MLP_KEYS = (
    (r"^model\.mm_projector\.0\.", f"{PROJECTOR}.linear_1."),
    (r"^model\.mm_projector\.2\.", f"{PROJECTOR}.linear_2."),
)
LDP_KEYS = (
    (r"^model\.mm_projector\.model\.mlp\.1\.", f"{PROJECTOR}.mlp.linear_1."),
    (r"^model\.mm_projector\.model\.mlp\.3\.", f"{PROJECTOR}.mlp.linear_2."),
    *(
        (rf"^model\.mm_projector\.model\.mb_block\.{i + 1}\.block\.{theirs}\.", f"{PROJECTOR}.blocks.{i}.{ours}.")
        for i in range(2)
        for theirs, ours in (
            (r"0\.0", "depthwise"),
            (r"0\.1", "depthwise_norm"),
            (r"1", "squeeze_excitation"),
            (r"2\.0", "pointwise"),
            (r"2\.1", "pointwise_norm"),
        )
    ),
)
LDPV2_KEYS = (
    (r"^model\.mm_projector\.mlp\.mlp\.0\.", f"{PROJECTOR}.mlp.linear_1."),
    (r"^model\.mm_projector\.mlp\.mlp\.2\.", f"{PROJECTOR}.mlp.linear_2."),
    (r"^model\.mm_projector\.peg\.peg\.0\.", f"{PROJECTOR}.position."),
)
SELECT_FEATURES = ("patch", "cls_patch")
# From values of mm_projector_type to the types of ProjectorConfig, and to the projectors' keys.
PROJECTOR_TYPES = {"linear": "linear", "mlp2x_gelu": "mlp", "ldpnet": "ldp", "ldpnetv2": "ldpv2"}
PROJECTOR_KEYS = {
    "mlp2x_gelu": MLP_KEYS,
    "ldpnet": LDP_KEYS,
    "ldpnetv2": LDPV2_KEYS,
    "linear": ((r"^model\.mm_projector\.(?=(weight|bias)$)", f"{PROJECTOR}.linear."),),
}
AROUND_IMAGE = ("<im_start>", "<im_end>")  # tokens that LLaVA's code adds to the tokenizer
# The start of the vision tower's keys: inside the checkpoint, in a checkpoint of its own with or without a text half,
# and as transformers 5 names its modules.
TOWER = (
    r"^(model\.vision_tower\.vision_tower\.)?(vision_model\.)?"
    r"(?=(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)"
)
# The keys that do not depend on the projector. A tower's text half is renamed to tower_text, which is unused.
COMMON_KEYS = (
    (TOWER + r"encoder\.layers\.", f"{VISION_TOWER}.layers."),
    (TOWER, f"{VISION_TOWER}."),
    (r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias)\b", "tower_text."),
    (r"^model\.embed_tokens\.", f"{TOKEN_EMBEDDING}."),
    (r"^model\.(?=layers\.|norm\.)", f"{TEXT_DECODER}."),
    (r"^lm_head\.", f"{LM_HEAD}."),
)


def family(
    *,
    name: str,
    model_types: tuple[str, ...],
    projectors: tuple[str, ...],
    prompt: ChatPrompt,
    question: str,
    markers: tuple[str, ...] = (),
) -> Family:
    """Return a family in this layout. ``projectors`` are the values of ``mm_projector_type`` that it has."""
    return Family(
        name=name,
        model_types=model_types,
        markers=markers,
        parse_config=partial(_parse_config, projectors),
        check_keys=_check_projector,
        tower_key="mm_vision_tower",
        key_map=(*(pair for projector in projectors for pair in PROJECTOR_KEYS[projector]), *COMMON_KEYS),
        unused_parameters=(r"^tower_text\.", *UNUSED_PARAMETERS),
        prompt=prompt,
        chunks_are_texts=True,
        image_aspect_ratio=None,
        question=question,
    )


def _check_projector(config: JsonObject, keys: Iterable[str]) -> None:
    """Raise ``ConfigError`` if the weights are those of another projector than the config's."""
    keys = list(keys)
    found = [
        projector
        for projector, pairs in PROJECTOR_KEYS.items()
        if any(re.match(pattern, key) for pattern, _ in pairs for key in keys)
    ]
    if found and _projector_type(config) not in found:
        raise ConfigError(
            f"config.json has mm_projector_type {config.get('mm_projector_type')}, but the weights are those of "
            f"{' and '.join(found)}: they do not belong together"
        )


def _parse_config(projectors: tuple[str, ...], config: JsonObject, tower: JsonObject | None) -> LlavaConfig:
    """Return the sizes that ``config.json`` gives. Raises ``ConfigError`` for what cannot be computed.

    ``tower`` is the vision tower's own config. Where it was not found, everything else is checked.
    """
    name = "mm_vision_select_feature"
    select = partial(checked_choice, name, config.text(name, "patch"), SELECT_FEATURES)
    vision = partial(_vision, config, tower, select)
    language_model = original_language_model(config)
    section = language_model.section(config)
    tied = section.flag("tie_word_embeddings")
    text = partial(text_config, section, language_model=language_model, tied=tied)
    check_all(
        partial(_check_projector_type, config, projectors),
        select,
        partial(config.flag, "mm_use_im_start_end", False),
        vision,
        text,
    )
    model = llava_config(
        vision(),
        text(),
        section,
        projector_type=PROJECTOR_TYPES[_projector_type(config)],
        projector_act="gelu",
        projector_bias=True,
    )
    return replace(model, around_image=AROUND_IMAGE if config.flag("mm_use_im_start_end", False) else None)


def _vision(config: JsonObject, tower: JsonObject | None, select: Callable[[], str]) -> VisionConfig:
    """Return the vision tower's sizes. ``select`` returns which features are read.

    LLaVA's class for SigLIP (``SigLipVisionTower`` of LLaVA-NeXT) deletes the last layer and reads what is the last one
    then, every row of it and without the norm that follows. It reads neither of CLIP's two settings.
    """
    if tower is None:  # nothing can be said of it: the published one stands in
        published = JsonObject(CLIP_L_336, what="the published tower", error=ConfigError)
        return vision_config(published, feature_layers=(-2,), keep_first_row=False)
    feature_layers = config.integers("mm_vision_select_layer", -2)
    is_siglip = tower.get("model_type") == "siglip_vision_model"
    if is_siglip and feature_layers != (-2,):
        raise ConfigError(
            f"config.json has mm_vision_select_layer {shown(config['mm_vision_select_layer'])}, but LLaVA's code reads "
            "SigLIP's last layer but one whatever it says: make it -2 if the model was trained so"
        )
    vision = vision_config(tower, feature_layers=feature_layers, keep_first_row=is_siglip or select() == "cls_patch")
    mm_hidden_size = config.integer("mm_hidden_size", vision.hidden_size)
    if mm_hidden_size != vision.hidden_size:
        raise ConfigError(
            f"config.json has mm_hidden_size {mm_hidden_size}, but the vision tower's hidden_size is "
            f"{vision.hidden_size}: it is another tower than the one this model was trained with"
        )
    return vision


def _check_projector_type(config: JsonObject, projectors: tuple[str, ...]) -> None:
    """Raise ``ConfigError`` unless the projector is one of the family's ``projectors``."""
    if _projector_type(config) not in projectors:
        checked_choice("mm_projector_type", config.get("mm_projector_type"), projectors)


def _projector_type(config: JsonObject) -> Any:
    """Return ``mm_projector_type``, or what LLaVA's code takes where it is missing, as in LLaVA-1."""
    return "linear" if (found := config.get("mm_projector_type")) is None else found
