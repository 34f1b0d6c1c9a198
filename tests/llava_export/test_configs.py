"""Finding a checkpoint and reading its configs: what they mean, and clear errors for what is not supported."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import CLIPVisionConfig, SiglipVisionConfig

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.locate import locate
from llava_export.errors import CheckpointError, ConfigError
from llava_export.families import find_family
from llava_export.families.sections import TOWER_DEFAULTS, vision_config
from llava_runner.documents import JsonObject


@pytest.fixture
def folder(checkpoint_of, tmp_path):
    """The folder of a copy that a test may change."""
    return shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")


def test_what_is_no_checkpoint_folder_is_said(tmp_path, folder):
    for model, message in (
        (tmp_path / "nowhere", "no folder, no hub id and no built-in model"),
        (folder / "config.json", "is a file"),
        (tmp_path, "no config.json"),
    ):
        with pytest.raises(CheckpointError, match=message):
            locate(str(model))


def test_without_network_the_message_says_what_to_do(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        CheckpointError, match=r"llava-hf/llava-1.5-7b-hf cannot be downloaded.*--model FOLDER.*tiny-llava"
    ):
        locate("llava-hf/llava-1.5-7b-hf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert'; supported: llava-1.5"),
        (
            {"text_config": {"model_type": "gemma"}},
            r"text_config.model_type .* 'gemma'; supported .* Mistral \(mistral\)",
        ),
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act"),
        ({"text_config": {"rope_parameters": {"rope_type": "yarn"}}}, "type 'yarn'"),
        ({"text_config": {"num_key_value_heads": 3}}, "num_key_value_heads 3 does not divide"),
        ({"text_config": {"hidden_size": 0}}, "hidden_size must be a positive integer"),
        ({"text_config": 3}, r"text_config in .*config.json is 3; it must be an object"),
        ({"vision_config": {"model_type": "dinov2"}}, "vision tower .dinov2. is not supported; choose from clip"),
        ({"vision_config": {"patch_size": 57}}, "patch_size 57 is larger than image_size 56"),
        (
            {"vision_config": {"tie_last_hidden_states": True}, "vision_feature_layer": [1, -1]},
            "tie_last_hidden_states .*is true: the last layer is read behind another norm",
        ),
        ({"vision_config": {"hidden_act": "mish"}}, "'mish' is not supported"),
        ({"vision_feature_layer": -9}, "outside the vision tower's"),
        ({"vision_feature_select_strategy": "cls"}, "'cls' is not supported; choose from default, full"),
    ],
)
def test_configs_of_other_models_are_refused(change, message, folder):
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(str(folder))


def test_a_config_that_is_not_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        open_checkpoint(str(folder))


def test_the_published_7b_config_gets_its_omitted_sizes():
    published = {
        "model_type": "llava",
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "text_config": {
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "vocab_size": 32064,
        },
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    document = JsonObject(published, what="config.json", error=ConfigError)
    config = find_family(document).parse_config(document, None)
    text = config.text
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (32, 32, 128)
    assert (text.vocab_size, text.rope_theta, text.tie_word_embeddings) == (32064, 10000.0, False)
    assert (config.num_vision_layers, config.num_image_tokens) == (23, 576)
    assert (config.bos_id, config.eos_ids) == (1, (2,))


@pytest.mark.parametrize("theirs", [CLIPVisionConfig(), SiglipVisionConfig()], ids=lambda config: config.model_type)
def test_a_towers_defaults_are_those_of_its_config_in_transformers(theirs):
    for name, value in TOWER_DEFAULTS[theirs.model_type].items():
        assert getattr(theirs, name) == value, name
    section = JsonObject({"model_type": theirs.model_type}, what="vision_config", error=ConfigError)
    config = vision_config(section, feature_layers=(-2,), keep_first_row=False)
    assert (config.type, config.num_used_layers, config.patch_size) == (theirs.model_type, 11, theirs.patch_size)
