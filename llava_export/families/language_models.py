"""The language models that the text decoder computes, each as one entry of data.

All are Llama's decoder with other sizes, biases and names. To add one, add its entry to ``LANGUAGE_MODELS``, and a
random checkpoint of it to ``tests/checkpoints.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_export.errors import ConfigError
from llava_runner.documents import JsonObject, shown

NO_BIASES: Mapping[str, bool | str] = {"qkv_bias": False, "output_bias": False, "mlp_bias": False}
# What null means for these is not their default: no window, and a size that follows from others.
NULL_IS_A_VALUE = ("sliding_window", "num_key_value_heads", "head_dim")


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """A language model, by what it differs in from others.

    - ``name``: what users call it.
    - ``model_type``: its value in ``text_config`` of ``config.json``.
    - ``llava_types``: the ``model_type`` of whole models in the layout of LLaVA's authors that have this language model
      and no other, at least one. Their ``config.json`` has its sizes at the top level.
    - ``architecture``: transformers' class of it.
    - ``defaults``: those of transformers' config class, for what published configs leave out.
    - ``biases``: which linears have a bias, by the fields of ``TextConfig``: true, false, or the option that says it.
    - ``has_window_options``: whether options say which layers have a window: ``use_sliding_window``,
      ``max_window_layers`` and ``layer_types``. Otherwise all layers have it.
    - ``is_fused``: whether transformers and GGUF have queries, keys and values as one linear, and gate and up
      projection as another. Checkpoints may have either form, whatever the language model.
    - ``gguf_architecture``: what llama.cpp calls it.
    - ``gguf_rotates_neighbors``: whether llama.cpp rotates neighboring rows of a head, and so stores queries and keys
      in another order.
    - ``gguf_needs_square_attention``: whether llama.cpp reads it only if all heads together are as wide as the model.
    - ``gguf_has_window``: whether GGUF has the window of it.
    """

    name: str
    model_type: str
    llava_types: tuple[str, ...]
    architecture: str
    defaults: Mapping[str, Any]
    biases: Mapping[str, bool | str]
    has_window_options: bool
    is_fused: bool = False
    gguf_architecture: str
    gguf_rotates_neighbors: bool = False
    gguf_needs_square_attention: bool = False
    gguf_has_window: bool = False

    def section(self, section: JsonObject) -> JsonObject:
        """Return what a ``config.json`` says of the language model, with defaults for what it leaves out."""
        given = {name: section[name] for name in NULL_IS_A_VALUE if name in section}
        return section.with_defaults({**self.defaults, **given})


LLAMA = LanguageModel(
    name="Llama",
    model_type="llama",
    llava_types=("llava_llama",),
    architecture="LlamaForCausalLM",
    defaults={
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
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    biases={"qkv_bias": "attention_bias", "output_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    has_window_options=True,
    gguf_architecture="llama",
    gguf_rotates_neighbors=True,
)
MISTRAL = LanguageModel(
    name="Mistral",
    model_type="mistral",
    llava_types=("llava_mistral",),
    architecture="MistralForCausalLM",
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    biases=NO_BIASES,
    has_window_options=False,
    gguf_architecture="llama",  # llama.cpp has no other for it
    gguf_rotates_neighbors=True,
)
QWEN2 = LanguageModel(
    name="Qwen2",
    model_type="qwen2",
    llava_types=("llava_qwen", "llava_qwen2"),
    architecture="Qwen2ForCausalLM",
    defaults={
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    biases={"qkv_bias": True, "output_bias": False, "mlp_bias": False},
    has_window_options=True,
    gguf_architecture="qwen2",
    gguf_needs_square_attention=True,
)
PHI3 = LanguageModel(
    name="Phi-3",
    model_type="phi3",
    llava_types=("llava_phi3",),
    architecture="Phi3ForCausalLM",
    defaults={
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    biases=NO_BIASES,
    has_window_options=False,
    is_fused=True,
    gguf_architecture="phi3",
    gguf_needs_square_attention=True,
    gguf_has_window=True,
)
LANGUAGE_MODELS = {it.model_type: it for it in (LLAMA, MISTRAL, QWEN2, PHI3)}
# The model_type of whole models in the layout of LLaVA's authors, and the language model of each.
LLAVA_TYPES = {llava_type: it for it in LANGUAGE_MODELS.values() for llava_type in it.llava_types}


def language_model_of(section: JsonObject) -> LanguageModel:
    """Return the language model of a ``text_config``: Llama where it does not say which one, as in transformers.

    Raises ``ConfigError`` for one that is not supported.
    """
    name = "model_type"
    found = LLAMA.model_type if section.get(name) is None else section.text(name)
    if found not in LANGUAGE_MODELS:
        supported = ", ".join(f"{it.name} ({key})" for key, it in LANGUAGE_MODELS.items())
        raise ConfigError(f"{section.where(name)} is {shown(found)}; supported language models: {supported}")
    return LANGUAGE_MODELS[found]


def original_language_model(config: Mapping[str, Any]) -> LanguageModel:
    """Return the language model of a ``config.json`` in the layout of LLaVA's authors: Llama where no other is known.

    They name it in the ``model_type`` of the whole model.
    """
    return LLAVA_TYPES.get(str(config.get("model_type")), LLAMA)
