"""Language models alone, in the four architectures that the decoder computes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from llava_export.checkpoint.checkpoint import open_language_model
from llava_export.reference import FloatModel
from tests.checkpoints import SHAPES, save_language_model
from tests.llava_export.test_models import TOLERANCE, relative_error

IDS = [1, 5, 90, 33, 400]


@pytest.mark.parametrize("shape", ["tied_head", "mistral", "qwen2", "phi3"])
@torch.no_grad()
def test_logits_equal_transformers(shape, tmp_path):
    folder = save_language_model(SHAPES[shape], tmp_path / "checkpoint")
    checkpoint = open_language_model(str(folder))
    model = checkpoint.build_model(max_context_len=16)
    checkpoint.weights.fill(model, prefix="")
    ours, theirs = FloatModel(model), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = theirs(torch.tensor([IDS])).logits[0]
    assert relative_error(ours.decode(ours.embed(IDS[:3]), position=0), expected[2]) < TOLERANCE
    assert relative_error(ours.decode(ours.embed(IDS[3:]), position=3), expected[4]) < TOLERANCE
