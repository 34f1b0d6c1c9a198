"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import MOBILEVLM_SHAPES, SHAPES, random_llava, save_checkpoint, save_mobilevlm


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function ``checkpoint_of(name)``: it returns the folder of a random checkpoint of a shape, made once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name) / "checkpoint"
            if name in MOBILEVLM_SHAPES:
                folders[name] = save_mobilevlm(MOBILEVLM_SHAPES[name], folder)
            else:
                folders[name] = save_checkpoint(random_llava(SHAPES[name], seed=list(SHAPES).index(name)), folder)
        return folders[name]

    return make
