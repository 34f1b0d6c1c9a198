"""Reading checkpoints: every layout that exists, and a clear word about every way they can be broken."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_export.checkpoint import reader
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.locate import image_statistics, locate
from llava_export.errors import CheckpointError, ConfigError
from tests.checkpoints import SHAPES, random_llava, save_checkpoint


def parameters(folder) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(str(folder))
    model = checkpoint.build_model(max_context_len=1)
    checkpoint.weights.fill(model, prefix="")
    return dict(model.named_parameters())


@pytest.fixture
def folder(checkpoint_of, tmp_path):
    """A copy to break."""
    return shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")


@pytest.fixture
def edit(folder):
    """``edit(change)`` applies a function to the dictionary of tensors on disk."""

    def apply(change) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def as_bin(folder) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_legacy_bin(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()


def as_sharded_bin(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        torch.save({name: tensors[name] for name in part}, folder / f"pytorch_model-{i}.bin")
        weight_map.update(dict.fromkeys(part, f"pytorch_model-{i}.bin"))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def as_module_names(folder) -> None:
    """The layout of transformers 5's modules, which differs from what it saves."""
    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        )
        if name.startswith(("vision_tower", "multi_modal_projector")):
            name = "model." + name.replace("vision_model.", "")
        renamed[name] = tensor
    save_file(renamed, folder / "model.safetensors")


@pytest.mark.parametrize("layout", [as_bin, as_legacy_bin, as_sharded_bin, as_module_names])
def test_every_layout_gives_the_same_parameters(layout, folder, checkpoint_of):
    layout(folder)
    expected = parameters(checkpoint_of("plain"))
    found = parameters(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sharded_safetensors_give_the_same_parameters(tmp_path, checkpoint_of):
    sharded = save_checkpoint(random_llava(SHAPES["plain"]), tmp_path / "sharded", max_shard_size="1MB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    expected = parameters(checkpoint_of("plain"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parameters(sharded).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(dtype, folder, edit):
    edit(lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert {parameter.dtype for parameter in parameters(folder).values()} == {torch.float32}


def test_filled_blocks_can_be_released(checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of("plain")))
    model = checkpoint.build_model(max_context_len=1)
    checkpoint.weights.fill(model, prefix="")
    checkpoint.weights.release(model)
    assert all(parameter.is_meta for parameter in model.parameters())


Q_PROJ = "language_model.model.layers.0.self_attn.q_proj.weight"


def test_what_was_read_does_not_stay_in_memory(folder):
    """Not even as pages of a mapped file."""
    checkpoint = open_checkpoint(str(folder))
    embedding = checkpoint.build_model(max_context_len=1).token_embedding
    checkpoint.weights.fill(embedding, prefix="token_embedding")
    assert embedding.weight.abs().sum() > 0
    checkpoint.weights.release(embedding)
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_missing_keys_are_named(folder, edit):
    edit(lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(CheckpointError, match=r"1 keys missing \(text_decoder.layers.0.self_attn.q_proj.weight\)"):
        open_checkpoint(str(folder))


def test_unexpected_keys_are_named(folder, edit):
    edit(lambda tensors: tensors.update({"model.mm_projector.0.weight": torch.zeros(1), Q_PROJ + "_x": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"2 unexpected keys \(model.mm_projector.0.weight, language_model.*_x\)"):
        open_checkpoint(str(folder))


def test_wrong_shapes_are_named(folder, edit):
    edit(lambda tensors: tensors.update({Q_PROJ: torch.zeros(7, 256)}))
    with pytest.raises(CheckpointError, match=r"1 wrong shapes \(.*q_proj.weight is \[7, 256\].* says \[256, 256\]\)"):
        open_checkpoint(str(folder))


def test_vision_layers_beyond_the_config_are_unexpected(folder, edit):
    key = "vision_tower.vision_model.encoder.layers.{}.layer_norm1.bias"
    edit(lambda tensors: tensors.update({key.format(9): torch.zeros(128)}))
    with pytest.raises(CheckpointError, match="1 unexpected keys"):
        open_checkpoint(str(folder))


def test_integer_weights_are_refused(folder, edit):
    edit(lambda tensors: tensors.update({Q_PROJ: torch.zeros(256, 256, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match="is I8; only float16"):
        parameters(folder)


@pytest.mark.parametrize("size", [0, 100, -1000])
def test_truncated_safetensors_are_damaged(size, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or incomplete"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("size", [0, 100, -1000])
def test_truncated_bins_are_damaged(size, folder):
    as_bin(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin .*damaged"):
        open_checkpoint(str(folder))


class Payload:
    def __reduce__(self):
        return (print, ("code in a pickle was run",))


def test_pickles_with_code_are_refused(folder, capsys):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        open_checkpoint(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(CheckpointError):
        open_checkpoint(str(folder))
    assert capsys.readouterr().out == ""


def test_a_missing_shard_is_named(tmp_path):
    sharded = save_checkpoint(random_llava(SHAPES["plain"]), tmp_path / "sharded", max_shard_size="1MB")
    victim = sorted(sharded.glob("*.safetensors"))[0]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"shard {victim.name} is named by the index but missing"):
        open_checkpoint(str(sharded))


def test_a_damaged_index_is_named(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match=r"index.json is damaged"):
        open_checkpoint(str(folder))


def test_a_folder_without_weights_says_what_it_looked_for(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights in .*model.safetensors, pytorch_model.bin"):
        open_checkpoint(str(folder))


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
        ({"text_config": {"model_type": "mistral"}}, "language model 'mistral'"),
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act"),
        ({"text_config": {"rope_parameters": {"rope_type": "yarn"}}}, "type 'yarn'"),
        ({"text_config": {"num_key_value_heads": 3}}, "num_key_value_heads 3 does not divide"),
        ({"text_config": {"hidden_size": 0}}, "hidden_size must be a positive integer"),
        ({"text_config": 3}, "text_config in config.json is not an object"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision tower 'siglip_vision_model'"),
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
    from llava_export.families import find_family

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
    config = find_family(published).parse_config(published, None)
    text = config.text
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (32, 32, 128)
    assert (text.vocab_size, text.rope_theta, text.tie_word_embeddings) == (32064, 10000.0, False)
    assert (config.vision.num_used_layers, config.num_image_tokens) == (23, 576)
    assert (config.bos_id, config.eos_ids) == (1, (2,))


def mapped_file_pages() -> int:
    """Bytes of files that this process has in its memory now."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile:")]
    return int(line.split()[1]) * 1024


def test_tensors_of_a_bin_may_be_views(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {"transposed": base.t(), "column": base[:, 2], "rows": base[1:3], "scalar": base[3, 5]}
    torch.save({**views, "half": base.half()}, tmp_path / "pytorch_model.bin")
    checkpoint = reader.CheckpointReader(tmp_path)
    for name, view in views.items():
        assert torch.equal(checkpoint.read(name), view)
    assert torch.equal(checkpoint.read("half"), base.half())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells what is in memory")
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_pages_leave_memory_with_their_tensor(form, tmp_path):
    size = 1 << 24
    tensors = {f"{i}": torch.full((size // 2,), i, dtype=torch.float16) for i in range(12)}
    if form == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    checkpoint = reader.CheckpointReader(tmp_path)
    before, highest = mapped_file_pages(), 0
    for key in tensors:
        assert checkpoint.read(key).float().mean() == int(key)
        highest = max(highest, mapped_file_pages() - before)
    assert highest < 2 * size


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="only Linux is told what to forget")
@pytest.mark.parametrize(("free", "forgotten"), [(1 << 20, 3), (1 << 30, 0), (None, 0)])
def test_of_a_checkpoint_larger_than_memory_a_part_stays_cached(free, forgotten, tmp_path, monkeypatch):
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    for name in names:
        save_file({name: torch.ones(100_000)}, tmp_path / name)
    index = {"weight_map": {name: name for name in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(reader, "available_memory", lambda: free)
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, begin, length, advice: advised.append((length, advice)))
    checkpoint = reader.CheckpointReader(tmp_path)
    for name in names:
        assert checkpoint.read(name).sum() == 100_000
    assert advised == [(400_000, os.POSIX_FADV_DONTNEED)] * forgotten


def test_image_statistics_come_from_either_processor_file(tmp_path):
    clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    assert image_statistics(tmp_path) == clip
    section = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": section}))
    assert image_statistics(tmp_path) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**section, "image_std": [1, 1, 0]}))
    with pytest.raises(CheckpointError):
        image_statistics(tmp_path)
