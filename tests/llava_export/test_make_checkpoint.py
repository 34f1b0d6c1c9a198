"""The checkpoints that measurements are made with: the small ones are read as what they are like."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoTokenizer

from benchmarks.make_checkpoint import (
    BIN,
    SAFETENSORS,
    tensor_shapes,
    write_config,
    write_image_processor,
    write_weights,
)
from benchmarks.published_configs import LLAVA, MOBILEVLM, ORIGINAL, config_like
from benchmarks.random_tokenizers import BYTE_LEVEL, ByteLevel, write_byte_level
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.config import TextConfig
from llava_export.errors import ConfigError
from llava_export.families import find_family
from llava_export.gguf.vocabulary import LLAMA3
from llava_runner.documents import JsonObject
from tests.byte_level import TEXTS
from tests.checkpoints import TINY_LLAVA

LANGUAGE_MODELS = {
    "bakllava-7b": "mistral",
    "llava-med-7b": "mistral",
    "llava-phi-3-mini": "phi3",
    "llava-llama-3-8b": "llama",
    "llava-interleave-qwen-0.5b": "qwen2",
    "llama-joycaption-8b": "llama",
}


@pytest.mark.parametrize("name", [*LANGUAGE_MODELS, "mobilevlm-v2-3b"])
def test_a_small_checkpoint_is_read_as_the_model_it_is_like(name, tmp_path):
    config = config_like(name, small=True)
    write_weights(tensor_shapes(config), tmp_path, stored=SAFETENSORS if name in LLAVA else BIN, seed=0)
    write_config(tmp_path, config)
    shutil.copy(TINY_LLAVA / "tokenizer.model", tmp_path)
    if name in LLAVA:
        write_image_processor(config, tmp_path)
    found = open_checkpoint(str(tmp_path)).config.text
    whole = parsed(name)
    assert found.model_type == whole.model_type == LANGUAGE_MODELS.get(name, "llama")
    assert (found.head_dim, found.vocab_size) == (whole.head_dim, whole.vocab_size)
    assert found.sliding_window == whole.sliding_window


def parsed(name: str) -> TextConfig:
    """Return the decoder's sizes that the ``config.json`` of full size gives."""
    settings = JsonObject(config_like(name), what="config.json", error=ConfigError)
    return find_family(settings).parse_config(settings, None).text


@pytest.mark.parametrize("name", [*LLAVA, *MOBILEVLM, *ORIGINAL])
def test_configs_of_full_size_can_be_read(name):
    text = parsed(name)
    assert text.head_dim in (64, 80, 96, 128) and text.num_hidden_layers >= 24


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_special_tokens_have_the_ids_that_the_config_says(name):
    wanted, config = BYTE_LEVEL[name], config_like(name)
    ids = {text: wanted.tokens + i for i, text in enumerate(wanted.special)}
    assert config["image_token_index"] in ids.values()
    assert config["text_config"]["eos_token_id"] in ids.values() and wanted.eos in ids
    assert wanted.bos is None or ids[wanted.bos] == config["text_config"]["bos_token_id"]
    assert max(ids.values()) < config["text_config"]["vocab_size"]


def test_a_trained_tokenizer_has_all_its_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.random_tokenizers.source_lines", lambda: iter(TEXTS))
    write_byte_level(ByteLevel(LLAMA3, 400, ("<s>", "<image>"), bos="<s>", eos="<s>"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 402 and tokenizer("<image>")["input_ids"] == [400, 401]
    assert tokenizer.eos_token_id == 400
