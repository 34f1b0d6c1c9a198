"""Programs with SigLIP's vision tower: all of it runs in XNNPACK, and both runners answer alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.pte.verify import compare, judge, read_manifest
from llava_runner import contract
from llava_runner.program import Program
from tests.integration.parity import assert_same_answers

FLOAT_SHAPES = ("siglip_without_first_patch", "siglip_several_feature_layers")


def test_xnnpack_runs_the_same_of_it_as_of_clip(package_of):
    siglip, clip = (
        next(r for r in package_of(name).exported.reports if r.method == contract.VISION_ENCODER)
        for name in ("siglip", "tiny-llava")
    )
    assert siglip.unexplained == [] and set(siglip.outside) == set(clip.outside)
    assert set(siglip.delegated) - set(clip.delegated) <= {"aten.add"} and "aten.sigmoid" in siglip.delegated


def test_a_four_bit_package_is_verified(package_of):
    package = package_of("siglip")
    manifest = read_manifest(package.program)
    card = manifest.card
    assert (card.num_image_tokens, card.image_size, card.image_aspect_ratio) == (16, 62, "stretch")
    assert (card.image_mean, card.image_std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert judge(compare(package.program, manifest), manifest) == []


@pytest.mark.parametrize("shape", FLOAT_SHAPES)
@torch.no_grad()
def test_float_features_equal_those_of_the_eager_model(shape, package_of):
    package = package_of(shape, "fp32", golden=False)
    checkpoint = open_checkpoint(package.model)
    eager = checkpoint.build_model(max_context_len=1).vision_encoder
    checkpoint.weights.fill(eager, prefix="vision_encoder")
    program = Program.open(package.program)
    side = program.card.image_size
    for height, width in ((side, side), (side, 31)):
        image = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
        torch.testing.assert_close(program.encode_image(image), eager(torch.from_numpy(image)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", FLOAT_SHAPES)
def test_both_runners_answer_alike(shape, package_of, llava_main, tmp_path):
    package = package_of(shape, "fp32", golden=False)
    assert_same_answers([llava_main], package.program, scenes=2, folder=tmp_path, max_new_tokens=6)
