"""ShareGPT4V: LLaVA-1.5 in its authors' layout, by another ``model_type`` and with a vision tower of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import ConfigError
from llava_export.families.prompts import VICUNA_V1
from tests.llava_export.test_mobilevlm import load, original_llava
from tests.llava_export.test_towers import INSIDE

PUBLISHED_TOWER = "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12"


@pytest.fixture
def share4v(checkpoint_of, tmp_path) -> tuple[Path, Path]:
    """The folders of a ShareGPT4V checkpoint and of its vision tower."""
    model, clip = original_llava(checkpoint_of("plain"), tmp_path)
    change(
        model,
        model_type="share4v",
        architectures=["Share4VLlamaForCausalLM"],
        image_aspect_ratio="pad",
        mm_use_im_patch_token=False,
        mm_use_im_start_end=False,
        mm_vision_select_feature="patch",
        mm_vision_select_layer=-2,
    )
    return model, clip


def change(folder: Path, **changes: Any) -> None:
    """Change values in ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "named"])
def test_the_model_is_that_of_llava(is_inside, share4v, checkpoint_of):
    model, clip = share4v
    if is_inside:
        tower = {f"{INSIDE}{key}": tensor for key, tensor in load_file(clip / "model.safetensors").items()}
        save_file({**load_file(model / "model.safetensors"), **tower}, model / "model.safetensors")
        shutil.rmtree(clip)
        change(model, mm_vision_tower=PUBLISHED_TOWER)
    found, expected = (open_checkpoint(str(folder)) for folder in (model, checkpoint_of("plain")))
    assert found.family.name == "llava-1.5" and found.config == expected.config
    ours, theirs = (load(checkpoint).state_dict() for checkpoint in (found, expected))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.images.aspect_ratio == "pad" and find_prompt(found).chat == VICUNA_V1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: change(folder, mm_projector_type="ldpnet"), "'ldpnet' is not supported; choose from mlp2x"),
        (lambda folder: change(folder, mm_use_im_start_end=1), "mm_use_im_start_end in .* must be true or false"),
        (lambda folder: change(folder, mm_hidden_size=64), "it is another tower"),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"model_type": "share4v"})),
            "has model_type 'share4v' and none of mm_projector_type, mm_vision_tower, mm_hidden_size, which a",
        ),
    ],
)
def test_what_differs_is_refused(edit: Callable[[Path], object], message, share4v):
    edit(share4v[0])
    with pytest.raises(ConfigError, match=message) as refused:
        open_checkpoint(str(share4v[0]))
    assert "\n" not in str(refused.value)
