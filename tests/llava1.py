"""Random checkpoints of LLaVA-1."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.llava_export.test_mobilevlm import original_llava

AROUND = ("<im_start>", "<im_end>")


def save_llava1(source: Path, folder: Path) -> Path:
    """Save a random LLaVA-1 in its authors' layout, with the decoder and tower of a llava-hf checkpoint.

    Its config lacks ``mm_projector_type``, as those of that time do. Return the model's folder.
    """
    model, _ = original_llava(source, folder)
    weights = load_file(model / "model.safetensors")
    tensors = {key: tensor for key, tensor in weights.items() if "mm_projector" not in key}
    torch.manual_seed(0)
    tensors["model.mm_projector.weight"] = torch.randn(256, 128) / 128**0.5
    tensors["model.mm_projector.bias"] = torch.randn(256) / 10
    save_file(tensors, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    del config["mm_projector_type"]
    config |= {"mm_use_im_start_end": True, "mm_vision_select_layer": -2}
    (model / "config.json").write_text(json.dumps(config))
    added = dict(zip(("<im_patch>", *AROUND), range(512, 515), strict=True))
    (model / "added_tokens.json").write_text(json.dumps(added))
    return model
