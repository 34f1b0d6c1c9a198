"""Stamped programs give the same outputs as ordinarily lowered ones, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llava_export.pte.export import export
from llava_export.pte.options import ORDINARY, Options
from llava_export.pte.plan import NUM_STAGES, plan
from llava_export.pte.stamp import template
from llava_export.pte.stamp.packing import Blob
from llava_export.recipe import RECIPES
from llava_export.stages import Stages
from llava_runner.program import Program
from tests.integration.conftest import EIGHT_BITS, SEVERAL_SCHEMES, Package, without_processes
from tests.integration.outputs import outputs


def compare_lowerings(package_of: Callable[..., Package], shape: str, **options: Any) -> Package:
    """Fail unless a stamped program gives the outputs of the ordinary one. Return its package."""
    stamped = package_of(shape, **options)
    ordinary = package_of(shape, lowering=ORDINARY, **{**options, "golden": False})
    for ours, theirs in zip(outputs(stamped.program), outputs(ordinary.program), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert stamped.exported.reports == ordinary.exported.reports
    return stamped


@pytest.mark.parametrize(("shape", "options"), [("deep", EIGHT_BITS), ("siglip", {"recipe": "fp32"})], ids=str)
def test_stamped_program_equals_the_ordinary_one(shape, options, package_of):
    compare_lowerings(package_of, shape, **options)


def test_layers_with_linears_of_several_schemes_are_stamped(package_of):
    """Also those with biases, grouped queries and a tied head, and a tower of which two layers are copied."""
    stamped = compare_lowerings(package_of, "deep_with_biases_and_tied_head", **SEVERAL_SCHEMES)
    assert not stamped.stages.notes
    assert Program.open(stamped.program).card.recipe["exceptions"] == SEVERAL_SCHEMES["exceptions"]
    needed = plan(stamped.model, Options(recipe=stamped.exported.recipe)).estimate
    assert stamped.program.stat().st_size <= needed.program


def test_export_lowers_every_layer_if_executorch_packs_otherwise(checkpoint_of, tmp_path, monkeypatch):
    monkeypatch.setattr(template, "pack", lambda parameter: (Blob("0" * 64, b"another form"),))
    stages = Stages()
    planned = plan(str(checkpoint_of("shallow")), Options(recipe=RECIPES["fp32"]))
    with without_processes():
        export(planned, output_dir=tmp_path, pte_name="llava.pte", stages=stages)
    (note,) = stages.notes
    assert "cannot be stamped" in note
    assert len(stages.records) == NUM_STAGES - 1  # the checkpoint is open already
    assert (tmp_path / "llava.pte").exists()
