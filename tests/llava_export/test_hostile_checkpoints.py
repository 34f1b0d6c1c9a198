"""Checkpoints that are damaged, or made to do harm: each is refused in one line, before any work is done."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_export.checkpoint import locate
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.images import find_images
from llava_export.checkpoint.prompt import find_prompt
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.errors import CheckpointError, ConfigError
from llava_export.gguf.export import export_gguf
from llava_export.pte.source import ModelSource
from llava_export.recipe import RECIPES
from llava_export.stages import Stages
from llava_runner.documents import MAX_BYTES, JsonObject
from llava_runner.errors import UserError
from tests.checkpoints import TINY_LLAVA
from tests.commands import llava

NAN, INFINITY = float("nan"), float("inf")
DEEP: Any = 1
for _ in range(200):
    DEEP = [DEEP]


@pytest.fixture
def folder(checkpoint_of, tmp_path) -> Path:
    """The folder of a copy that a test may damage."""
    return shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")


def changed(config: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """Return a config with another value at a place like ``text_config.vocab_size``."""
    *sections, name = where.split(".")
    section = config
    for each in sections:
        section = section[each]
    section[name] = value
    return config


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("text_config.num_hidden_layers", 10**9, "num_hidden_layers 1000000000 is above 128"),
        ("vision_config.num_hidden_layers", 10**7, "num_hidden_layers 10000000 is above 128"),
        ("text_config.num_hidden_layers", 128, "has 128 layers of the language model .* no weights of layer 2 and 125"),
        ("vision_config.num_hidden_layers", 100, "has 99 layers of the vision tower .* no weights of layer 3 and 95"),
        ("vision_config.image_size", 10**6, "image_size 1000000 is above"),
        ("text_config.hidden_size", 2**40, "hidden_size 1099511627776 is above"),
        ("text_config.vocab_size", 10**400, "vocab_size in .*; it must be a whole number"),
        (
            "text_config.hidden_size",
            True,
            "text_config.hidden_size in .*config.json is True; it must be a whole number",
        ),
        ("text_config.intermediate_size", 512.0, "is 512.0; it must be a whole number"),
        ("text_config.num_attention_heads", 0, "num_attention_heads must be a positive integer, not 0"),
        ("text_config.num_attention_heads", -4, "num_attention_heads must be a positive"),
        ("text_config.num_key_value_heads", 0, "num_key_value_heads must be a positive integer"),
        ("vision_config.num_attention_heads", 3, "num_attention_heads 3 does not divide hidden_size"),
        ("vision_config.patch_size", 0, "patch_size must be a positive integer"),
        ("vision_config.num_channels", 1, "reads 1 channels"),
        ("text_config.rms_norm_eps", NAN, "rms_norm_eps in .* is nan; it must be a number"),
        ("text_config.rms_norm_eps", 0, "rms_norm_eps 0.0 must be a number between 0 and 1"),
        ("vision_config.layer_norm_eps", -1e-5, "layer_norm_eps -1e-05 must be a number between"),
        ("text_config.rope_theta", INFINITY, "rope_theta.* is inf; it must be a number"),
        ("text_config.rope_parameters", {"rope_theta": 0}, "rope_theta 0.0 must be"),
        ("text_config.rope_parameters", "x", "rope_parameters in .* is 'x'; it must be an object"),
        ("text_config.rope_parameters", {"rope_type": ["default"]}, "rotary embedding of type"),
        ("text_config.attention_bias", "false", "attention_bias in .* is 'false'; it must be true or false"),
        ("text_config.bos_token_id", [1], r"bos_token_id in .* is \[1\]; it must be a whole number"),
        ("text_config.bos_token_id", 576, "bos_token_id 576 is not in the vocabulary, whose ids are 0 to 575"),
        ("text_config.bos_token_id", -1, "bos_token_id in .* is -1; it must be a whole number of at least 0"),
        ("text_config.eos_token_id", [], r"eos_token_id in .* is \[\]"),
        ("text_config.eos_token_id", [2, 10**9], "eos_token_id 1000000000 is not in the vocabulary"),
        ("text_config.eos_token_id", [2, None], r"eos_token_id in .* is \[2, None\]"),
        ("text_config.eos_token_id", "2", "eos_token_id in .* is '2'"),
        ("text_config.pad_token_id", 577, "pad_token_id 577 is not in the vocabulary"),
        ("pad_token_id", 10**9, "pad_token_id 1000000000 is not in the vocabulary"),
        ("vision_feature_layer", [], "vision_feature_layer in"),
        ("vision_feature_layer", "-2", "vision_feature_layer in .* is '-2'"),
        ("vision_feature_layer", [-2, 1.5], "vision_feature_layer in"),
        ("vision_feature_select_strategy", ["default"], "vision_feature_select_strategy in"),
        ("projector_hidden_act", {}, "projector_hidden_act in .* it must be a text"),
        ("tie_word_embeddings", 1, "tie_word_embeddings in .* is 1; it must be true or false"),
        ("model_type", ["llava"], r"model_type \['llava'\]"),
        ("anything", DEEP, "nested too deep"),
    ],
)
def test_values_of_a_config_are_checked_before_anything_else(where, value, message, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(config, where, value)))
    start = time.monotonic()
    with pytest.raises(UserError, match=message):
        open_checkpoint(str(folder))
    assert time.monotonic() < start + 10


def test_padding_may_be_the_minus_one_of_old_configs(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(config, "text_config.pad_token_id", -1)))
    assert open_checkpoint(str(folder)).config.bos_id == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 10**6, "nested too deep"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "does not hold a JSON object"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "is not JSON"),
        (b" " * (MAX_BYTES + 1), "larger than the"),
        (None, "is not a file|no config.json"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_documents_of_any_content_are_read_within_limits(name, content, message, folder):
    (folder / name).unlink(missing_ok=True)
    if content is None:
        os.mkfifo(folder / name)  # to open it would wait for ever
        if name != "config.json":
            open_checkpoint(str(folder))  # it is not taken for the file
            return
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    "statistics",
    [
        {"image_mean": 3}, {"image_mean": None}, {"image_std": [1, 1]}, {"image_std": ["1", "1", "1"]},
        {"image_std": [0.2, 0.2, 0]}, {"image_std": [0.2, 0.2, -1]}, {"image_mean": [NAN, 0, 0]},
        {"image_mean": [[0], 0, 0]}, {"image_std": [INFINITY, 1, 1]}, {"image_mean": {"r": 1, "g": 1, "b": 1}},
    ],
)  # fmt: skip
def test_statistics_that_cannot_be_those_of_images_are_refused(statistics, tmp_path):
    settings = {"size": 56, "crop_size": 56, **statistics}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="image_"):
        find_images(JsonObject({}, what="", error=ConfigError), [tmp_path], default="pad", image_size=56)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "", ".."])
def test_an_index_names_files_of_its_folder_alone(name, folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"which is no file in its folder|named by the index but missing"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    "name", ["a--b/c", "x/y.git", "~nosuch/x", "~nosuch", "a..b/c", "\0", "x" * 5000, "-/-", "", "a[/b]"]
)
def test_names_that_are_no_hub_ids_are_refused_in_a_line(name):
    with pytest.raises(CheckpointError, match=r"is no folder|cannot be a hub id|cannot be downloaded|no config.json"):
        locate.locate(name)


class Half(torch.nn.Module):
    """A module, which is no tensor."""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(3).to_sparse(), "is not a dense tensor"),
        (torch.eye(3).to_sparse_csr(), "dense tensor|damaged"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "dense tensor|damaged"),
        (torch.empty(3, device="meta"), "meta device"),
        (torch.zeros(1).expand(10**6, 10**6), "more values than are stored"),
        (torch.ones(2, dtype=torch.complex64).conj(), "damaged|only float16"),
        ({"b": torch.ones(1)}, "not a dictionary of named tensors"),
        (3, "not a dictionary of named tensors"),
        (Half(), "holds more than tensors"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_files_hold_dense_tensors_alone(value, message, is_zip, tmp_path):
    tensors = {"a": torch.ones(2), "b": value}
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match=message):
        reader = CheckpointReader(tmp_path)
        reader.read("b")


def test_torch_files_with_other_keys_are_refused(tmp_path):
    torch.save({7: torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a dictionary of named tensors"):
        CheckpointReader(tmp_path)


def test_parameters_and_views_of_a_torch_file_are_read(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": torch.nn.Parameter(base), "b": base.t()[1:]}, tmp_path / "pytorch_model.bin")
    reader = CheckpointReader(tmp_path)
    assert torch.equal(reader.read("a"), base) and torch.equal(reader.read("b"), base.t()[1:])


def rewritten(path: Path, *, compression: int = zipfile.ZIP_STORED, **records: bytes) -> None:
    """Rewrite an archive with other content for the records whose names end so."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, records.get(name.rpartition("/")[2].replace(".", "_"), data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byteorder": b"big"}, "another byte order"),
        ({"byteorder": b""}, "another byte order"),
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
        ({"data_pkl": bytes(5 << 20)}, "holds more than tensors"),
    ],
)
def test_torch_files_that_torch_would_misread_are_refused(change, message, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, path)
    rewritten(path, **change)
    with pytest.raises(CheckpointError, match=message):
        CheckpointReader(tmp_path)


def test_a_tensor_stays_within_its_record(tmp_path):
    """The pickle says 2000 values, and the record has 1000. The next record's bytes would be read as values."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2000), "b": torch.zeros(2000)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as other:
        for name, data in content.items():
            other.writestr(name, data[:4000] if name.endswith("data/0") else data)
    with pytest.raises(CheckpointError, match=r"a in .* does not lie within its record"):
        CheckpointReader(tmp_path)


def spoiled(folder: Path, key: str, value: float, *, at: int = -1) -> Checkpoint:
    """Return a checkpoint whose tensor has another value at one place."""
    tensors = load_file(folder / "model.safetensors")
    tensors[key].view(-1)[at] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(str(folder))


NORM = "language_model.model.norm.weight"
DOWN = "language_model.model.layers.1.mlp.down_proj.weight"
PATCHES = "vision_tower.embeddings.patch_embedding.weight"


def to_gguf(checkpoint: Checkpoint, folder: Path) -> None:
    prompt = find_prompt(checkpoint)
    export_gguf(checkpoint, quantization="q8_0", mmproj_type="f16", prompt=prompt, output_dir=folder, stages=Stages())


@pytest.mark.parametrize(("key", "value"), [(DOWN, NAN), (NORM, INFINITY), (PATCHES, -INFINITY)])
def test_weights_with_nan_or_infinity_stop_either_export(key, value, folder, tmp_path):
    checkpoint = spoiled(folder, key, value, at=7)
    source = ModelSource(checkpoint, RECIPES["8da4w"].with_changes(group_size=32), 8)
    with pytest.raises(CheckpointError, match=f"{key} in .* has NaN or infinity in 1 of"):
        list(source.quantized_blocks(source.build()))
    checkpoint = open_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match=f"{key} in .* has NaN or infinity in 1 of"):
        to_gguf(checkpoint, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf"))


def test_values_beyond_half_precision_stop_gguf(folder, tmp_path):
    checkpoint = spoiled(folder, PATCHES, 1e6)
    with pytest.raises(CheckpointError, match=f"{PATCHES} has values up to 1e\\+06, beyond 65504"):
        to_gguf(checkpoint, tmp_path / "out")


def test_names_may_be_no_unicode_and_look_like_markup(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff[/b]"))
    shutil.copytree(TINY_LLAVA, odd / "checkpoint")
    done = llava("gguf", "--model", odd / "checkpoint", "--output-dir", odd / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert "n\\udcff[/b]/out/mmproj-model-f16.gguf" in done.stdout
    done = llava("split", "--model", odd / "nothing", "--output-dir", odd / "out")
    assert done.returncode == 2 and "n\\udcff[/b]/nothing is no folder" in done.stderr
    with pytest.raises(ConfigError):
        open_checkpoint(str(odd / "checkpoint"), vision_tower="x")
