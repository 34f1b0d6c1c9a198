"""A browser, and a server whose answers are not computed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.runner.serve.page.browser import INSTALL, Browser, can_drive
from tests.runner.serve.page.fake_server import FakeServer, fake_server

AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"


def lacking(what: str, how: str) -> NoReturn:
    """Skip the test, and say why. Fail instead where everything is meant to be tested (``LLAVA_TEST_ALL=1``)."""
    if os.environ.get("LLAVA_TEST_ALL"):
        pytest.fail(f"{what} is missing: {how}")
    pytest.skip(f"{what} is missing: {how}")


@pytest.fixture(scope="session")
def one_browser() -> Iterator[Browser]:
    if not can_drive():
        lacking("Chromium", INSTALL)
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def browser(one_browser) -> Iterator[Browser]:
    """Return the browser with a wide and light window. At the end it must not have complained about the page."""
    one_browser.show()
    yield one_browser
    # Statuses that are no success are what some tests want.
    assert [it for it in one_browser.complaints() if "Failed to load resource" not in it] == []


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as server:
        yield server


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the source of axe-core."""
    if not AXE.exists():
        lacking("axe-core", "npm install --prefix tests/runner/serve/page --no-package-lock")
    return AXE.read_text()
