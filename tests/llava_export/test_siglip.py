"""Checkpoints with SigLIP: how their images are prepared, their layouts, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.images import HALVES, Images
from llava_export.errors import CheckpointError, ConfigError
from llava_export.families.sections import SIGLIP_SO400M_384, vision_config
from llava_export.pte.options import Options
from llava_export.pte.plan import _lengths as default_lengths
from llava_runner.documents import JsonObject
from tests.checkpoints import SIGLIP, TOWER, randomize
from tests.llava_export.test_images import PREPROCESSOR, configured, images_of, pixel_values
from tests.llava_export.test_mobilevlm import original_llava
from tests.photographs import photographs

SIDE = SIGLIP["image_size"]
SQUARE = {"height": SIDE, "width": SIDE}
SETTINGS = {"image_processor_type": "SiglipImageProcessor", "size": SQUARE}
INSIDE = "model.vision_tower.vision_tower.vision_model."


@pytest.fixture
def folder(checkpoint_of, tmp_path) -> Path:
    """Return the folder of a copy of a random checkpoint with SigLIP, in llava-hf's layout."""
    return shutil.copytree(checkpoint_of("siglip"), tmp_path / "copy")


@pytest.mark.parametrize(("side", "tokens", "length"), [(336, 576, 768), (384, 729, 1024), (448, 1024, 1280)])
def test_the_default_context_has_room_beside_a_large_image(side, tokens, length, folder):
    config = open_checkpoint(str(folder)).config
    assert config.vision is not None
    config = replace(config, vision=replace(config.vision, image_size=side))
    assert config.num_image_tokens == tokens and default_lengths(config, Options()) == (length, length)
    assert default_lengths(config, Options(max_context_len=1500)) == (length, 1500)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_processor_type": "SiglipImageProcessorFast", "do_center_crop": None, "do_pad": None, "resample": 3},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "resample": 2},
        {"size": {"shortest_edge": 70}, "do_center_crop": True, "crop_size": SQUARE},
        {"size": [SIDE, SIDE], "do_normalize": False},
        {"size": SIDE, "default_to_square": True, "do_pad": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("inside", [False, True], ids=["preprocessor_config", "processor_config"])
def test_photographs_become_the_pixels_of_transformers(inside, changes, folder):
    settings = {**SETTINGS, **changes}
    (folder / PREPROCESSOR).write_text(json.dumps(settings))
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    if inside:  # as transformers 5 writes it
        (folder / PREPROCESSOR).unlink()
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    for photograph in photographs():
        expected = processor(photograph, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(pixel_values(folder, photograph), expected, rtol=2e-6, atol=2e-6)


def test_without_a_file_images_are_stretched_as_siglips_processor_does(folder):
    assert images_of(folder) == Images(HALVES, HALVES, "stretch", SIDE, SIDE, "bicubic")
    assert images_of(folder, SETTINGS) == images_of(folder, {**SETTINGS, "do_pad": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": SIDE}, "shortest_edge and do_center_crop is false"),
        ({"do_center_crop": True}, "lacks crop_size"),
        ({"size": {"height": SIDE, "width": 70}}, "takes squares"),
        ({"size": None}, "lacks size"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "choose from .*SiglipImageProcessor"),
        ({"image_grid_pinpoints": [[SIDE, 2 * SIDE]]}, "several crops"),
    ],
    ids=str,
)
def test_what_the_runners_cannot_do_is_refused_by_name(changes, message, folder):
    with pytest.raises(ConfigError, match=message):
        images_of(folder, {**SETTINGS, **changes})


def random_tower(folder: Path, **changes: Any) -> SiglipVisionModel:
    """Save a random SigLIP checkpoint with both halves, as Google's are. Return the vision half."""
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = SiglipModel(SiglipConfig(vision_config={**TOWER, **SIGLIP, **changes}, text_config=text)).eval()
    randomize(dict(model.requires_grad_(False).named_parameters()))
    model.save_pretrained(folder)
    return model.vision_model


@pytest.fixture
def original(checkpoint_of, tmp_path) -> tuple[Path, SiglipVisionModel]:
    """Return a checkpoint of LLaVA's authors' layout that names a SigLIP beside it, and that tower."""
    model, clip = original_llava(checkpoint_of("plain"), tmp_path)
    shutil.rmtree(clip)
    tower = random_tower(tmp_path / "siglip")
    weights = load_file(model / "model.safetensors")
    name = "model.mm_projector.0.weight"
    weights[name] = torch.randn(weights[name].shape[0], SIGLIP["hidden_size"])
    save_file(weights, model / "model.safetensors")
    configured(model, mm_vision_tower=str(tmp_path / "siglip"), mm_hidden_size=SIGLIP["hidden_size"])
    return model, tower


@torch.no_grad()
def llavas_features(tower: SiglipVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return what LLaVA's own code reads: the last hidden state of the tower without its last layer and head."""
    config = SiglipVisionConfig(**{**tower.config.to_dict(), "vision_use_head": False})
    config.num_hidden_layers -= 1
    shorter = SiglipVisionModel(config).eval()
    shorter.load_state_dict(tower.state_dict(), strict=False)
    return shorter(pixels, output_hidden_states=True).hidden_states[-1]


@torch.no_grad()
def assert_llavas_features(checkpoint, tower: SiglipVisionModel) -> None:
    """Fail unless a checkpoint's vision tower gives what LLaVA's own code reads of it."""
    encoder = checkpoint.build_model(max_context_len=1).vision_encoder
    checkpoint.weights.fill(encoder, prefix="vision_encoder")
    pixels = torch.randn(1, 3, SIDE, SIDE)
    expected = llavas_features(tower, pixels)
    assert expected.shape == (1, 16, SIGLIP["hidden_size"]) and checkpoint.config.num_image_tokens == 16
    torch.testing.assert_close(encoder.vision_tower(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -2}])
def test_the_original_layout_reads_every_row_of_the_last_layer_but_one(settings, original):
    folder, tower = original
    assert_llavas_features(open_checkpoint(str(configured(folder, **settings))), tower)


def test_a_tower_inside_lacks_the_layer_that_llava_deleted(original):
    folder, tower = original
    weights = load_file(folder / "model.safetensors")
    kept = {k: v.clone() for k, v in tower.state_dict().items() if ".layers.2." not in k and not k.startswith("head.")}
    save_file({**weights, **{INSIDE + k: v for k, v in kept.items()}}, folder / "model.safetensors")
    shutil.rmtree(folder.parent / "siglip")
    section = {"model_type": "siglip_vision_model", **TOWER, **SIGLIP}
    assert_llavas_features(open_checkpoint(str(configured(folder, vision_config=section))), tower)
    configured(folder, vision_config={}, mm_vision_tower="some-lab/siglip-tuned")
    with pytest.raises(CheckpointError, match="by its name it is none of OpenAI's CLIP"):
        open_checkpoint(str(folder))


def test_another_layer_than_the_one_that_llavas_code_reads_is_refused(original):
    folder, _ = original
    with pytest.raises(ConfigError, match="mm_vision_select_layer -1, but LLaVA's code reads SigLIP's last layer but"):
        open_checkpoint(str(configured(folder, mm_vision_select_layer=-1)))


def test_the_published_tower_is_known_by_its_name(original):
    folder, _ = original
    configured(folder, mm_vision_tower="google/siglip-so400m-patch14-384")
    with pytest.raises(ConfigError, match=r"siglip-so400m-patch14-384, whose hidden_size is 1152.*has 288"):
        open_checkpoint(str(folder), vision_tower=str(folder.parent / "siglip"))
    section = JsonObject(SIGLIP_SO400M_384, what="the published tower", error=ConfigError)
    config = vision_config(section, feature_layers=(-2,), keep_first_row=True)
    assert (config.num_features, config.num_used_layers, config.hidden_act) == (729, 26, "gelu_pytorch_tanh")


def test_the_original_layout_pads_with_siglips_mean_color(original):
    folder, _ = original
    plain = Images(HALVES, HALVES, "stretch", SIDE, SIDE, "bicubic")
    assert images_of(folder) == plain and images_of(configured(folder, image_aspect_ratio="square")) == plain
    configured(folder, image_aspect_ratio="pad")
    processor = SiglipImageProcessorPil(size=SQUARE)
    for settings in (None, SETTINGS):  # the tower's own file says the same
        if settings:
            (folder.parent / "siglip" / PREPROCESSOR).write_text(json.dumps(settings))
        for photograph in photographs():
            longer = max(photograph.size)
            square = Image.new("RGB", (longer, longer), (127, 127, 127))
            square.paste(photograph, ((longer - photograph.width) // 2, (longer - photograph.height) // 2))
            expected = processor(square, return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(pixel_values(folder, photograph), expected, rtol=2e-6, atol=2e-6)
