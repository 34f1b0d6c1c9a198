"""Fixtures of the tests that run in a process without torch and ExecuTorch's Python runtime.

That runtime and the engine register the same operators, so they cannot be in one process. ``tests/integration/
test_engine.py`` starts these tests, and gives them a package and what the Python runner answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from llava_runner.engine import Engine


@dataclass(frozen=True)
class Scene:
    """An image file, a question about it, and the Python runner's answer."""

    path: Path
    question: str
    text: str
    ids: list[int]

    @property
    def content(self) -> bytes:
        """Return the bytes of the file."""
        return self.path.read_bytes()


@pytest.fixture(scope="session")
def library() -> Path:
    """Return the path of the engine."""
    return Path(os.environ["LLAVA_ENGINE"])


@pytest.fixture(scope="session")
def package() -> Path:
    """Return the folder of a package."""
    return Path(os.environ["LLAVA_TEST_PACKAGE"])


@pytest.fixture(scope="session")
def scenes() -> list[Scene]:
    """Return the scenes that the Python runner was asked about."""
    path = Path(os.environ["LLAVA_TEST_SCENES"])
    return [Scene(path.parent / each.pop("name"), **each) for each in json.loads(path.read_text())]


@pytest.fixture(scope="session")
def shared(library, package) -> Iterator[Engine]:
    """Return a session for all tests."""
    engine = Engine(package, library=library)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared) -> Engine:
    """Return a session without a conversation. What its KV cache holds is that of the test before."""
    shared.reset()
    return shared
