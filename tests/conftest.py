"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import SHAPES, random_llava, save_checkpoint


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint_of(name)``: the folder of a random checkpoint of one of ``SHAPES``, made once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name) / "checkpoint"
            folders[name] = save_checkpoint(random_llava(SHAPES[name], seed=list(SHAPES).index(name)), folder)
        return folders[name]

    return make
