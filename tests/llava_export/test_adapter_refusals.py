"""Adapters that cannot be merged: what is wrong is named, all at once, before a weight is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.errors import CheckpointError, ConfigError
from tests.adapters import (
    change_json,
    tensors_of,
)

Q_PROJ = "language_model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(adapted_of, tmp_path) -> Path:
    """The folder of a copy of an adapter that a test may damage."""
    return Path(shutil.copytree(adapted_of("attention").adapter, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'; only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'.*merge_and_unload"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"target_parameters": ["mlp.experts"]}, "has target_parameters, which"),
        ({"lora_bias": True, "use_qalora": True}, "has lora_bias, use_qalora, which"),
        ({"kasa_config": {"beta": 1}}, "has kasa_config, which"),
        ({"use_something_new": True}, "has use_something_new, which"),
        ({"r": 5}, r"self_attn.* the rank 5, and its matrices have the rank 4"),
        ({"rank_pattern": {"q_proj": 2}}, "q_proj the rank 2, and its matrices have the rank 4"),
        ({"r": "4"}, "r .* is '4'; it must be a whole number"),
        ({"alpha_pattern": {"[": 2}}, "is no pattern"),
        ({"alpha_pattern": {r"(\w+)+x": 2}}, "repeats a group"),
        ({"rank_pattern": {r"\w*\w*\w*\w*\w*\w*x": 2}}, "repeats too much"),
        ({"rank_pattern": {"a" * 999: 2}}, "is too long"),
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"base_model_name_or_path": None}, "does not name its base model: give it with --base-model"),
    ],
)
def test_options_that_cannot_be_merged_are_named(changes, message, adapter):
    change_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(adapter))


def test_an_adapter_without_weights_is_refused(adapter):
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors has no weights"):
        open_checkpoint(str(adapter))


def edit_weights(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of an adapter, or remove them. Keys have dots in place of two underscores."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in changes.items():
        key = f"base_model.model.model.{name.replace('__', '.')}"
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    save_file(tensors, adapter / "adapter_model.safetensors")


def test_all_keys_that_match_nothing_and_all_wrong_shapes_are_named_at_once(adapter):
    q_proj = Q_PROJ.replace(".", "__")
    edit_weights(
        adapter,
        **{
            f"{q_proj}__lora_A__weight": torch.zeros(4, 99),
            f"{q_proj}__bias": torch.zeros(256),
            "language_model__layers__7__mlp__up_proj__lora_A__weight": torch.zeros(4, 256),
            "language_model__layers__7__mlp__up_proj__lora_B__weight": torch.zeros(384, 4),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(adapter))
    assert "3 of its keys match no parameter" in str(caught.value)
    assert f"{Q_PROJ}.bias" in str(caught.value) and "layers.7.mlp.up_proj.lora_A.weight" in str(caught.value)
    assert f"{Q_PROJ} has [4, 99] and [256, 4] for a weight of [256, 256]" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("lora_B__weight", None, "has lora_A: lora_B is missing"),
        ("lora_A__weight", torch.zeros(0), "not saved as a whole"),
        ("lora_A__weight", torch.zeros(4, 256, dtype=torch.int8), "is I8; only float16"),
    ],
)
def test_matrices_that_are_none_are_named(part, value, message, adapter):
    edit_weights(adapter, **{f"{Q_PROJ.replace('.', '__')}__{part}": value})
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(adapter))


def test_matrices_with_nan_are_named_when_they_are_read(adapter):
    edit_weights(adapter, **{f"{Q_PROJ.replace('.', '__')}__lora_B__weight": torch.full((256, 4), torch.nan)})
    with pytest.raises(CheckpointError, match=r"q_proj.lora_B.weight in .*adapter_model.* has NaN or infinity"):
        tensors_of(open_checkpoint(str(adapter)))


def test_what_overflows_when_it_is_merged_is_named(adapter):
    change_json(adapter / "adapter_config.json", lora_alpha=1e7)
    with pytest.raises(CheckpointError, match=r"with .*adapter_model.safetensors merged into it, has NaN or infinity"):
        tensors_of(open_checkpoint(str(adapter)))


def test_a_base_of_other_sizes_is_named(adapter, checkpoint_of):
    with pytest.raises(CheckpointError, match=r"k_proj has \[4, 256\] and \[256, 4\] for a weight of \[64, 256\]"):
        open_checkpoint(str(adapter), base_model=str(checkpoint_of("grouped_query")))


def test_files_that_are_missing_or_too_many_are_named(adapter, adapted_of):
    shutil.copy(adapted_of("attention").base / "model.safetensors", adapter)
    with pytest.raises(CheckpointError, match="both an adapter and the weights of a whole model"):
        open_checkpoint(str(adapter))
    (adapter / "model.safetensors").unlink()
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert len(tensors_of(open_checkpoint(str(adapter))))  # the other format
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
        open_checkpoint(str(adapter))


def test_a_tied_head_cannot_be_changed_alone(adapted_of, checkpoint_of, adapter):
    assert open_checkpoint(str(adapter), base_model=str(checkpoint_of("tied_head"))).config.text.tie_word_embeddings
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        open_checkpoint(str(adapted_of("embedding").adapter), base_model=str(checkpoint_of("tied_head")))


def test_what_is_there_twice_is_refused(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    key = f"base_model.model.model.{Q_PROJ}.lora_A"
    save_file({**tensors, f"{key}.other.weight": torch.zeros(4, 256)}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_A.*weight twice, as base_model"):
        open_checkpoint(str(adapter))
    names = {name: name.replace("model.language_model.", "language_model.model.") for name in tensors}
    older = {name: tensors[key].clone() for key, name in names.items() if Q_PROJ in key and "lora" in key}
    save_file({**tensors, **older}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"matrices of text_decoder.layers.0.self_attn.q_proj.weight twice"):
        open_checkpoint(str(adapter))
