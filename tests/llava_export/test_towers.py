"""Where a vision tower's weights, sizes and image statistics come from, in the layouts that only name it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.config import VisionConfig
from llava_export.errors import CheckpointError, ConfigError
from tests.checkpoints import TOWER
from tests.llava_export.test_mobilevlm import original_llava

INSIDE = "model.vision_tower.vision_tower.vision_model."
UNREACHABLE = ("/mnt/train7/towers/clip-tuned", "some-lab/clip-tuned", "../clip-tuned", "clip-tuned/")
SIZES = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}  # of the random towers


def vision_of(checkpoint: Checkpoint) -> VisionConfig:
    """Return the sizes of a checkpoint's vision tower."""
    assert checkpoint.config.vision is not None
    return checkpoint.config.vision


@pytest.fixture(params=["mobilevlm", "llava"])
def folder(request, checkpoint_of, tmp_path) -> Path:
    """The folder of a checkpoint with its tuned vision tower inside. The tower's own folder is gone."""
    if request.param == "mobilevlm":
        copy: Path = shutil.copytree(checkpoint_of("mobilevlm"), tmp_path / "copy")
        shutil.rmtree(copy / "tower")
        return copy
    model, clip = original_llava(checkpoint_of("plain"), tmp_path)
    tower = {f"{INSIDE}{key}": tensor for key, tensor in load_file(clip / "model.safetensors").items()}
    save_file({**load_file(model / "model.safetensors"), **tower}, model / "model.safetensors")
    shutil.rmtree(clip)
    return model


@pytest.fixture
def change(folder) -> Callable[..., None]:
    """A function that changes values in ``config.json``."""

    def apply(**changes: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return apply


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path) -> Path:
    """An empty cache of a hub that must not be asked."""

    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def stored_patches(folder: Path) -> torch.Tensor:
    """Return the weights of the patch embedding in a folder."""
    path = folder / "model.safetensors"
    tensors = load_file(path) if path.exists() else torch.load(folder / "pytorch_model.bin")
    (found,) = [tensor for key, tensor in tensors.items() if key.endswith("patch_embedding.weight")]
    return found.float()


def patches(checkpoint: Checkpoint) -> torch.Tensor:
    """Return the weights of the patch embedding that a model gets."""
    model = checkpoint.build_model(max_context_len=1)
    checkpoint.weights.fill(model.vision_encoder, prefix="vision_encoder")
    return model.vision_encoder.vision_tower.embeddings.patch_embedding.weight


def tower_folder(path: Path, **changes: Any) -> Path:
    """Make a folder with the config of a vision tower alone. Return it."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model", **TOWER, **changes}))
    return path


@pytest.mark.parametrize("name", UNREACHABLE)
def test_a_tower_inside_is_used_wherever_the_config_says_it_is(name, folder, change):
    change(mm_vision_tower=name)
    checkpoint = open_checkpoint(str(folder))
    assert torch.equal(patches(checkpoint), stored_patches(folder))
    found = vision_of(checkpoint)
    assert {key: getattr(found, key) for key in TOWER} == TOWER
    assert (found.hidden_act, found.layer_norm_eps, found.feature_layers) == ("quick_gelu", 1e-5, (2,))
    (note,) = checkpoint.notes
    assert name in note and "--vision-tower" in note


def test_sizes_in_the_checkpoint_itself_need_no_guess(folder, change):
    section = {"model_type": "clip_vision_model", **TOWER, "hidden_act": "gelu", "num_attention_heads": 4}
    change(mm_vision_tower=UNREACHABLE[0], vision_config=section)
    checkpoint = open_checkpoint(str(folder))
    assert (vision_of(checkpoint).hidden_act, vision_of(checkpoint).num_attention_heads) == ("gelu", 4)
    assert checkpoint.notes == ()


@pytest.mark.parametrize("name", ["laion/CLIP-ViT-X-14-tuned", "/data/apple-DFN5B-CLIP"])
def test_towers_of_another_activation_take_a_config_and_no_weights(name, folder, change, tmp_path):
    change(mm_vision_tower=name)
    with pytest.raises(CheckpointError, match=rf"{name} in config.json, is inside .* config.json alone"):
        open_checkpoint(str(folder))
    config = tower_folder(tmp_path / "config", hidden_act="gelu", num_attention_heads=8)
    checkpoint = open_checkpoint(str(folder), vision_tower=str(config))
    assert (vision_of(checkpoint).hidden_act, vision_of(checkpoint).num_attention_heads) == ("gelu", 8)
    assert torch.equal(patches(checkpoint), stored_patches(folder))
    assert checkpoint.notes == () and config in checkpoint.paths


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("embeddings.position_embedding.weight", (19, 128), "19 positions are no square"),
        ("embeddings.class_embedding", None, "are not those of a CLIP tower"),
        ("embeddings.patch_embedding.weight", (96, 3, 14, 14), "width of 96 is no multiple"),
    ],
)
def test_weights_that_do_not_tell_the_sizes_ask_for_a_config(key, shape, message, checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of("mobilevlm"), tmp_path / "copy")
    shutil.rmtree(folder / "tower")
    tensors = torch.load(folder / "pytorch_model.bin")
    del tensors[INSIDE + key]
    if shape is not None:
        tensors[INSIDE + key] = torch.ones(shape)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"{message}.*--vision-tower"):
        open_checkpoint(str(folder))


def test_a_tower_that_replaces_the_one_inside_is_said(folder, change, checkpoint_of, tmp_path):
    change(mm_vision_tower=UNREACHABLE[0])
    (tmp_path / "twin").mkdir()
    _, clip = original_llava(checkpoint_of("plain_twin"), tmp_path / "twin")
    checkpoint = open_checkpoint(str(folder), vision_tower=str(clip))
    assert torch.equal(patches(checkpoint), stored_patches(clip))
    (note,) = checkpoint.notes
    assert str(clip) in note and "replaces the one that is inside" in note


def test_a_tower_in_the_hubs_cache_gives_config_and_statistics_without_the_hub(folder, change, hub):
    change(mm_vision_tower="some-lab/clip-tuned")
    snapshot = tower_folder(hub / "models--some-lab--clip-tuned/snapshots/0123abcd", hidden_act="gelu")
    (snapshot / "preprocessor_config.json").write_text(json.dumps({**SIZES, "image_mean": [0.5, 0.25, 0.125]}))
    checkpoint = open_checkpoint(str(folder))
    assert (vision_of(checkpoint).hidden_act, checkpoint.images.mean) == ("gelu", (0.5, 0.25, 0.125))
    assert torch.equal(patches(checkpoint), stored_patches(folder)) and checkpoint.notes == ()


def test_statistics_are_those_of_the_named_tower_where_its_weights_are_inside(folder, change, tmp_path):
    tower = tower_folder(tmp_path / "named")
    change(mm_vision_tower=str(tower))
    (tower / "preprocessor_config.json").write_text(json.dumps({**SIZES, "image_std": [0.5, 0.4, 0.3]}))
    assert open_checkpoint(str(folder)).images.std == (0.5, 0.4, 0.3)
    (folder / "preprocessor_config.json").write_text(json.dumps({**SIZES, "image_std": [0.2, 0.2, 0.2]}))
    assert open_checkpoint(str(folder)).images.std == (0.5, 0.4, 0.3)  # as in LLaVA's code
    (tower / "preprocessor_config.json").unlink()
    assert open_checkpoint(str(folder)).images.std == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
def test_a_tower_may_be_deeper_than_the_published_one(folder, change, tmp_path):
    tower = tower_folder(tmp_path / "named", num_hidden_layers=48)
    change(mm_vision_tower=str(tower), mm_vision_select_layer=40)
    with pytest.raises(CheckpointError, match=r"has 40 layers of the vision tower|keys missing"):
        open_checkpoint(str(folder))  # its weights are not there, and nothing else is wrong


def test_a_tower_without_weights_anywhere_is_refused(checkpoint_of, tmp_path):
    model, _ = original_llava(checkpoint_of("plain"), tmp_path)
    config = tower_folder(tmp_path / "config")
    with pytest.raises(CheckpointError, match=r"no weights in .*config"):
        open_checkpoint(str(model), vision_tower=str(config))


def test_what_else_is_wrong_is_said_where_the_tower_is_not_found(checkpoint_of, tmp_path):
    model, clip = original_llava(checkpoint_of("plain"), tmp_path)
    shutil.rmtree(clip)
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu", "mm_use_im_start_end": 1}))
    with pytest.raises(ConfigError) as refused:
        open_checkpoint(str(model))
    assert len(refused.value.lines) == 4
    for reason in (str(clip), "hidden_act 'relu'", "mm_use_im_start_end"):
        assert sum(reason in line for line in refused.value.lines) == 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pointers_in_the_folder_of_a_tower_are_named(name, checkpoint_of, tmp_path):
    model, clip = original_llava(checkpoint_of("plain"), tmp_path)
    (clip / name).write_text("version https://git-lfs.github.com/spec/v1\nsize 7\n")
    with pytest.raises(CheckpointError, match=f"{clip} has pointers of Git LFS in place of {name}: run git lfs pull"):
        open_checkpoint(str(model))


@pytest.mark.parametrize("given", [None, "some-lab/another"])
def test_nothing_is_downloaded_for_a_model_that_is_refused_anyway(given, checkpoint_of, tmp_path):
    model, _ = original_llava(checkpoint_of("plain"), tmp_path)
    path = model / "config.json"
    config = {
        **json.loads(path.read_text()),
        "mm_vision_tower": "some-lab/clip-of-llava-1",
        "mm_projector_type": "resampler",
    }
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="'resampler' is not supported") as refused:
        open_checkpoint(str(model), vision_tower=given)
    assert len(refused.value.lines) == 1
