"""Language models alone, as transformers writes them. A small one can draft for a large model (``--text-only``)."""

from __future__ import annotations

from llava_export.config import LlavaConfig
from llava_export.families.family import Family
from llava_export.families.language_models import LANGUAGE_MODELS, language_model_of
from llava_export.families.prompts import NO_PROMPT
from llava_export.families.sections import UNUSED_PARAMETERS, text_config, with_special_ids
from llava_export.models.names import LM_HEAD, TEXT_DECODER, TOKEN_EMBEDDING
from llava_runner.documents import JsonObject


def parse_config(config: JsonObject, tower: JsonObject | None) -> LlavaConfig:
    """Return the sizes that a ``config.json`` gives. Raises ``ConfigError`` for what cannot be computed.

    ``tower`` is None: there is none.
    """
    language_model = language_model_of(config)
    section = language_model.section(config)
    text = text_config(section, language_model=language_model, tied=section.flag("tie_word_embeddings"))
    return with_special_ids(None, None, text, section)


TEXT_ONLY = Family(
    name="language model",
    model_types=tuple(LANGUAGE_MODELS),
    parse_config=parse_config,
    key_map=(
        (r"^model\.embed_tokens\.", f"{TOKEN_EMBEDDING}."),
        (r"^model\.(?=layers\.|norm\.)", f"{TEXT_DECODER}."),
        (r"^lm_head\.", f"{LM_HEAD}."),
    ),
    unused_parameters=UNUSED_PARAMETERS,
    prompt=NO_PROMPT,
    chunks_are_texts=True,
    image_aspect_ratio=None,
    question="The picture shows",
)
