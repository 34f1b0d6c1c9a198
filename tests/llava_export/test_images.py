"""How a checkpoint prepares images: as transformers' processors and LLaVA's own code do, or a refusal."""

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
from transformers import AutoImageProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.images import CLIP_MEAN, CLIP_STD, PROCESSORS, Images
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import CheckpointError, ConfigError
from llava_export.gguf.export import export_gguf
from llava_export.pte.package.image import write_image
from llava_export.stages import Stages
from llava_runner.contract import RESAMPLES
from llava_runner.image import prepare_image
from tests.checkpoints import TINY_LLAVA
from tests.photographs import photographs

SIDE = 56  # of the random checkpoints' vision tower
PLAIN = Images(CLIP_MEAN, CLIP_STD, "pad", SIDE, SIDE, "bicubic")
CROP = replace(PLAIN, aspect_ratio="crop")
SQUARE = {"height": SIDE, "width": SIDE}
CLIP = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
LLAVA = {**CLIP, "image_processor_type": "LlavaImageProcessor", "do_pad": True}
PREPROCESSOR = "preprocessor_config.json"
OTHER = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.21, 0.22, 0.23]}


@pytest.fixture(scope="module")
def copy(checkpoint_of, tmp_path_factory) -> Path:
    """Return the folder of a copy of a random checkpoint, without an image processor."""
    return shutil.copytree(checkpoint_of("plain"), tmp_path_factory.mktemp("images") / "copy")


@pytest.fixture
def folder(copy):
    """Return the same folder, cleared after each test."""
    yield copy
    for name in (PREPROCESSOR, "processor_config.json"):
        (copy / name).unlink(missing_ok=True)


@pytest.fixture
def original(checkpoint_of, tmp_path) -> Path:
    """Return the folder of a checkpoint in the original layout, with its tower inside and a folder named tower."""
    return shutil.copytree(checkpoint_of("mobilevlm_v2"), tmp_path / "original")


def images_of(folder: Path, settings: dict[str, Any] | None = None, name: str = PREPROCESSOR) -> Images:
    """Return how the checkpoint in a folder prepares images, with these settings in a file there."""
    if settings is not None:
        (folder / name).write_text(json.dumps(settings))
    return open_checkpoint(str(folder)).images


def configured(folder: Path, **changes: Any) -> Path:
    """Change values of a checkpoint's config.json. Return its folder."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def pixel_values(folder: Path, image: Image.Image) -> np.ndarray:
    """Return what the vision tower sees of an image: prepared by the runner, normalized by the model."""
    checkpoint = open_checkpoint(str(folder))
    encoder = checkpoint.build_model(max_context_len=1).vision_encoder
    return encoder.pixel_values(torch.from_numpy(checkpoint.images.prepared(image)))[0].numpy()


@pytest.mark.parametrize(
    "changes",
    [
        *({"resample": number} for number in range(len(RESAMPLES))),
        OTHER,
        {"size": {"shortest_edge": 71}, "resample": 1},
        {"size": {"height": 64, "width": 64}},
        {"size": 56, "crop_size": 56},
        {"size": 56, "default_to_square": True, "do_pad": False},
        {"size": [64, 64], "crop_size": [56, 56], "resample": 2},
        {"size": {"shortest_edge": 64, "longest_edge": None}, "do_rescale": True, "rescale_factor": 1 / 255},
    ],
    ids=str,
)
@pytest.mark.parametrize("settings", [CLIP, LLAVA], ids=["CLIP", "LLaVA"])
def test_photographs_become_the_pixels_of_transformers(settings, changes, folder):
    settings = {**settings, **changes}
    (folder / PREPROCESSOR).write_text(json.dumps(settings))
    processor = {"CLIPImageProcessor": CLIPImageProcessorPil, "LlavaImageProcessor": LlavaImageProcessorPil}[
        settings["image_processor_type"]
    ].from_pretrained(folder)
    for photograph in photographs():
        expected = processor(photograph, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(pixel_values(folder, photograph), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"do_center_crop": False, "size": SQUARE, "resample": 2},  # stretched
        {"do_center_crop": None, "crop_size": None, "do_pad": None, "size": SQUARE, "resample": 4},
        {"do_normalize": None, "image_mean": None, "image_std": None},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": None, "rescale_factor": None},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 1.1], "image_std": [1, 1, 0.5]},
        {"image_mean": 0.5, "image_std": 0.25},
        {"do_pad": True, "do_convert_rgb": False},  # of a batch, and here is one image
    ],
    ids=str,
)
def test_what_is_no_padding_becomes_the_pixels_of_transformers(changes, folder):
    (folder / PREPROCESSOR).write_text(json.dumps({**CLIP, **changes}))
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    for photograph in photographs():
        expected = processor(photograph, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(pixel_values(folder, photograph), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_torchvision_differs_by_two_levels_in_few_pixels(mode):
    """Where torchvision is installed, transformers resizes by this function of torch, not by Pillow.

    By torchvision 0.28, "lanczos" differs by one level, "nearest" takes other neighbors in a few percent of the pixels,
    and "box" and "hamming" cannot be had.
    """
    for photograph in photographs():
        pixels = torch.from_numpy(np.asarray(photograph).copy()).permute(2, 0, 1)
        theirs = torch.nn.functional.interpolate(pixels[None], (336, 336), mode=mode, antialias=True)[0]
        ours = prepare_image(
            photograph, image_size=336, image_mean=CLIP_MEAN, image_aspect_ratio="stretch", image_resample=mode
        )
        difference = np.abs(theirs.numpy().astype(int) - ours)
        assert difference.max() <= 2 and 0 < (difference > 0).mean() < 0.01


def test_the_processor_is_the_one_that_transformers_takes(folder):
    for name in (None, *(f"{name}{suffix}" for name in PROCESSORS for suffix in ("", "Fast"))):
        settings = {**LLAVA, "image_processor_type": name, "do_center_crop": True}
        found = images_of(folder, settings).aspect_ratio
        expected = type(AutoImageProcessor.from_pretrained(folder)).__name__
        assert (found, expected) in [
            ("crop", "CLIPImageProcessorPil"),
            ("pad", "LlavaImageProcessorPil"),
            ("crop", "SiglipImageProcessorPil"),
        ]
    old = {**CLIP, "image_processor_type": None, "feature_extractor_type": "CLIPFeatureExtractor", "do_pad": True}
    assert images_of(folder, old) == CROP


def test_the_processors_file_goes_before_the_image_processors(folder):
    assert images_of(folder) == PLAIN  # there is none: as LLaVA-1.5 was trained
    assert images_of(folder, {**CLIP, **OTHER}) == replace(CROP, mean=(0.5, 0.4, 0.3), std=(0.21, 0.22, 0.23))
    assert images_of(folder, {"processor_class": "LlavaProcessor"}, "processor_config.json").std == (0.21, 0.22, 0.23)
    assert images_of(folder, {"image_processor": LLAVA}, "processor_config.json") == PLAIN
    processor = AutoImageProcessor.from_pretrained(folder)
    assert (processor.do_pad, tuple(processor.image_std)) == (True, CLIP_STD)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 64, "crop_size": 60}, r"makes images of 60x60 pixels.*the vision tower takes 56x56"),
        ({}, r"makes images of 224x224 pixels.*takes 56x56"),
        ({"size": {"shortest_edge": 48}}, "crop_size in .* is 56 and its size 48: a crop cannot be larger"),
        ({"size": None}, "lacks size"),
        ({"crop_size": None}, "lacks crop_size"),
        ({"resample": None}, "lacks resample"),
        ({"image_mean": None}, "lacks image_mean"),
        ({"rescale_factor": None}, "lacks rescale_factor"),
        ({"do_resize": False}, "do_resize in .* is false"),
        ({"do_center_crop": False}, "shortest_edge and do_center_crop is false"),
        ({"size": {"height": 56, "width": 70}}, "size in .* is 70x56 pixels; the vision tower takes squares"),
        ({"crop_size": {"height": 56, "width": 42}}, "crop_size in .* is 42x56 pixels"),
        ({"size": {"shortest_edge": 56, "longest_edge": 80}}, "must have shortest_edge alone, or height and width"),
        ({"size": {"max_height": 56, "max_width": 56}}, "size in .* has 'max_height, max_width'"),
        ({"crop_size": {"shortest_edge": 56}}, "crop_size in .* must have height and width"),
        ({"size": {"shortest_edge": True}}, "must be a whole number"),
        ({"size": "56"}, "size in .* is '56'; it must be an object"),
        ({"resample": 6}, "resample in .* is 6; it must be a whole number from 0 to 5"),
        ({"resample": "bicubic"}, "must be a whole number"),
        ({"image_processor_type": "LlavaNextImageProcessor"}, "'LlavaNextImageProcessor' in .* is not supported"),
        ({"image_processor_type": 3}, "image processor 3"),
        ({"image_grid_pinpoints": [[336, 672]]}, "image_grid_pinpoints in .*several crops"),
        ({"do_pad": True, "pad_size": {"height": 70, "width": 70}}, "pad_size in .* is not supported"),
        ({**LLAVA, "do_normalize": False}, "padding would not be of the mean color"),
        ({**LLAVA, "rescale_factor": 1 / 127.5}, "padding would not be of the mean color"),
        ({"rescale_factor": 0}, "rescale_factor in .* must be above 0"),
        ({"do_rescale": False, "image_mean": [122, 116, 300]}, "fractions of 1"),
        ({"do_normalize": "yes"}, "do_normalize in .* must be true or false"),
        ({"image_mean": 3}, "must be fractions of 1"),
        ({"image_std": [1, 1]}, "image_std in .* must be a list of 3 numbers"),
        ({"image_std": [0.2, 0.2, 0]}, "standard deviations cannot be 0"),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_runners_cannot_do_is_refused_by_name(changes, message, folder):
    with pytest.raises(ConfigError, match=message):
        images_of(folder, {**CLIP, **changes} if changes else {})


@pytest.mark.parametrize("ratio", ["anyres", "anyres_max_9", "highres", "crop_split", 3])
def test_several_crops_are_refused_before_weights_are_looked_at(ratio, original):
    (original / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=f"image_aspect_ratio '?{ratio}'? is not supported.*pad, square"):
        open_checkpoint(str(configured(original, image_aspect_ratio=ratio)))


def test_pinpoints_are_refused_in_llava_hfs_layout(checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")
    with pytest.raises(ConfigError, match="image_grid_pinpoints are not supported"):
        open_checkpoint(str(configured(folder, image_grid_pinpoints=[[336, 672], [672, 336]])))


def test_the_original_layout_pads_only_where_its_config_says_so(original):
    assert images_of(original) == CROP  # as LLaVA's code, whose default is square
    for ratio, expected in (("pad", PLAIN), ("square", CROP), (None, CROP)):
        assert images_of(configured(original, image_aspect_ratio=ratio)) == expected
    # The rest is the tower's image processor. LLaVA reads it as CLIP's, whatever class it names.
    settings = {**LLAVA, **OTHER, "size": 64, "resample": 2}
    (original / "tower" / PREPROCESSOR).write_text(json.dumps(settings))
    changed = Images((0.5, 0.4, 0.3), (0.21, 0.22, 0.23), "crop", SIDE, 64, "bilinear")
    assert images_of(original) == changed
    assert images_of(configured(original, image_aspect_ratio="pad")) == replace(changed, aspect_ratio="pad")


def test_padding_in_the_original_layout_is_llavas_own(original):
    (original / "tower" / PREPROCESSOR).write_text(json.dumps({**CLIP, **OTHER, "size": 64}))
    configured(original, image_aspect_ratio="pad")
    processor = CLIPImageProcessorPil.from_pretrained(original / "tower")
    color = tuple(int(channel * 255) for channel in processor.image_mean)
    for photograph in photographs():
        longer = max(photograph.size)
        square = Image.new("RGB", (longer, longer), color)
        square.paste(photograph, ((longer - photograph.width) // 2, (longer - photograph.height) // 2))
        expected = processor(square, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(pixel_values(original, photograph), expected, rtol=1e-6, atol=1e-6)


def test_the_image_processor_is_that_of_the_named_tower(original, tmp_path):
    settings = {**CLIP, **OTHER}
    (original / PREPROCESSOR).write_text(json.dumps({**settings, "image_mean": [0.1, 0.1, 0.1]}))
    assert images_of(original).mean == (0.1, 0.1, 0.1)  # the tower's own is not to be had
    elsewhere = shutil.copytree(original / "tower", tmp_path / "elsewhere")
    (elsewhere / PREPROCESSOR).write_text(json.dumps(settings))
    assert images_of(configured(original, mm_vision_tower=str(elsewhere))).mean == (0.5, 0.4, 0.3)


def test_an_image_processor_that_is_no_json_is_refused(folder):
    (folder / PREPROCESSOR).write_text("[1, 2]")
    with pytest.raises(CheckpointError, match="does not hold a JSON object"):
        images_of(folder)
    with pytest.raises(CheckpointError, match=r"image_processor in .* must be an object"):
        images_of(folder, {"image_processor": 3}, "processor_config.json")


def test_the_built_in_model_says_that_it_was_trained_with_padding():
    assert open_checkpoint("tiny-llava").images == Images(CLIP_MEAN, CLIP_STD, "pad", 112, 112, "bicubic")
    assert AutoImageProcessor.from_pretrained(TINY_LLAVA).do_pad


@pytest.mark.parametrize("settings", [None, CLIP, {**LLAVA, "size": 64, "resample": 1}], ids=str)
def test_gguf_says_where_llama_cpp_prepares_images_otherwise(settings, folder, tmp_path):
    images = images_of(folder, settings)
    checkpoint, stages = open_checkpoint(str(folder)), Stages()
    prompt = find_prompt(checkpoint)
    export_gguf(checkpoint, quantization="f16", mmproj_type="f16", prompt=prompt, output_dir=tmp_path, stages=stages)
    note = f"llama.cpp pads images to a square; those of this checkpoint are {images.text()}"
    assert stages.notes == ([] if images == PLAIN else [note])


def test_what_is_done_with_images_is_told(folder):
    assert (images_of(folder).text(), images_of(folder).source) == (
        "padded to a square, resized to 56 pixels (bicubic)",
        "its family",
    )
    images = images_of(folder, {**CLIP, "size": {"shortest_edge": 64}, "resample": 0})
    assert (
        images.text() == "cropped to the center square, resized to 64 pixels (nearest), of which the center 56 are kept"
    )
    assert images.source == str(folder / PREPROCESSOR)


@pytest.mark.parametrize("ratio", ["crop", "stretch"])
def test_the_image_tensor_is_the_runners_square_where_nothing_is_padded(ratio, tmp_path):
    images = replace(PLAIN, aspect_ratio=ratio, resize=64, resample="lanczos")
    write_image(SAMPLE_IMAGE, tmp_path, images=images)
    expected = prepare_image(
        SAMPLE_IMAGE,
        image_size=SIDE,
        image_mean=CLIP_MEAN,
        image_aspect_ratio=ratio,
        image_resize=64,
        image_resample="lanczos",
    )
    np.testing.assert_array_equal(torch.load(tmp_path / "image.pt").numpy(), expected)
