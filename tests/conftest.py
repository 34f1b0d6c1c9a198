"""Fixtures that all tests share."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.byte_level import BYTE_LEVEL_CHECKPOINTS, save_byte_level
from tests.checkpoints import (
    MOBILEVLM_SHAPES,
    SHAPES,
    random_llava,
    save_checkpoint,
    save_language_model,
    save_mobilevlm,
)
from tests.fine_tunes import save_rigged

if TYPE_CHECKING:
    from tests.adapters import Adapted

collect_ignore = ["engine"]  # these run in a process of their own: tests/integration/test_engine.py starts it

# Tests are of ExecuTorch's Python runtime, which cannot be in one process with the engine, unless they name the engine.
os.environ["LLAVA_ENGINE"] = "off"

# In the processes in which pytest-xdist runs tests; each has a temporary folder within that of the run.
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with a long file that makes its own packages. Meanwhile another process makes what most files wait for."""
    items.sort(key=lambda item: item.path.name != "test_stamp.py")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Any]], Any]:
    """A function ``once(name, make)``: it returns what ``make()`` returns, which is called in one process of the run.

    Another process that asks for the same name waits until it is made, and gets a copy.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if IS_WORKER else base) / "once"
    folder.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[], Any]) -> Any:
        path = folder / hashlib.sha256(name.encode()).hexdigest()
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                path.write_bytes(pickle.dumps(make()))
            return pickle.loads(path.read_bytes())

    return once


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function ``checkpoint_of(name)``: it returns the folder of a random checkpoint of a shape, made once."""
    folders: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name) / "checkpoint"
            if name == "rigged":
                folders[name] = save_rigged(folder, random_model=make("shallow"))
            elif name in BYTE_LEVEL_CHECKPOINTS:
                folders[name] = save_byte_level(folder, BYTE_LEVEL_CHECKPOINTS[name])
            elif name == "llava_1":
                from tests.llava1 import save_llava1

                folders[name] = save_llava1(make("shallow"), folder.parent)
            elif name == "language_model":
                folders[name] = save_language_model(SHAPES["shallow"], folder)
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
