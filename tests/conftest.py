"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.checkpoints import MOBILEVLM_SHAPES, SHAPES, random_llava, save_checkpoint, save_mobilevlm
from tests.fine_tunes import save_rigged

if TYPE_CHECKING:
    from tests.adapters import Adapted


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function ``checkpoint_of(name)``: it returns the folder of a random checkpoint of a shape, made once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name) / "checkpoint"
            if name == "rigged":
                folders[name] = save_rigged(folder, random_model=make("plain"))
            elif name in MOBILEVLM_SHAPES:
                folders[name] = save_mobilevlm(MOBILEVLM_SHAPES[name], folder)
            else:
                folders[name] = save_checkpoint(random_llava(SHAPES[name], seed=list(SHAPES).index(name)), folder)
        return folders[name]

    return make


@pytest.fixture(scope="session")
def adapted_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Adapted]:
    """A function ``adapted_of(kind)``: it returns the folders of a random adapter, made once."""
    from tests.adapters import KINDS  # peft takes seconds to import

    made: dict[str, Adapted] = {}

    def make(kind: str) -> Adapted:
        if kind not in made:
            made[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return make
