"""Packages to test with, each exported once a session."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llava_export.pipeline import NUM_STAGES, Exported, export, plan
from llava_export.recipe import RECIPES
from llava_export.stages import Stages


@dataclass(frozen=True)
class Package:
    """An export and the checkpoint it came from."""

    model: str
    exported: Exported
    stages: Stages

    @property
    def program(self) -> Path:
        return self.exported.program

    @property
    def folder(self) -> Path:
        return self.program.parent


@pytest.fixture(scope="session")
def package_of(checkpoint_of, tmp_path_factory) -> Callable[..., Package]:
    """``package_of(shape, recipe, **options)`` exports a random checkpoint, or tiny-llava by that name."""
    packages: dict[str, Package] = {}

    def make(
        name: str, recipe: str = "8da4w", *, partitioners: int = 2, lowering: str = "stamped", **changes: Any
    ) -> Package:
        key = repr((name, recipe, partitioners, lowering, sorted(changes.items())))
        if key not in packages:
            model = name if name == "tiny-llava" else str(checkpoint_of(name))
            stages = Stages(Console(file=io.StringIO()), total=NUM_STAGES)
            with stages.running():
                with stages.stage("open checkpoint"):
                    planned = plan(
                        model,
                        recipe=RECIPES[recipe].with_changes(**changes),
                        partitioners=partitioners,
                        lowering=lowering,
                    )
                folder = tmp_path_factory.mktemp(name)
                exported = export(planned, output_dir=folder, pte_name="llava.pte", stages=stages)
            packages[key] = Package(model, exported, stages)
        return packages[key]

    return make


@pytest.fixture(scope="session")
def tiny_package(package_of) -> Package:
    """The built-in model with the default recipe: what ``make demo`` makes."""
    return package_of("tiny-llava")
