"""A program with calibrated layers answers as well as others, in both runners. ``test_stamp`` compares its bits."""

from __future__ import annotations

import json

import pytest

from llava_runner.session import Session
from tests.integration.conftest import CALIBRATED, Package
from tests.integration.llava_main import QUESTION, ask


@pytest.fixture(scope="module")
def calibrated(package_of) -> Package:
    return package_of("tiny-mobilevlm", **CALIBRATED)


def test_both_runners_give_the_same_right_answer(calibrated, llava_main):
    with Session.load(calibrated.folder) as session:
        answer = session.ask(calibrated.folder / "image.png", QUESTION)
    assert "circle" in answer
    assert ask(llava_main, calibrated.folder, "--packed-cache-path=off") == (answer + "\n", [])


def test_the_card_says_it_and_nothing_is_left_behind(calibrated):
    manifest = json.loads((calibrated.folder / "llava.json").read_text())
    assert manifest["card"]["recipe"]["algorithm"] == "awq-gptq"
    assert not list(calibrated.folder.glob(".*.calibration"))
    assert [record.name for record in calibrated.stages.records][2:4] == ["read samples", "calibrate"]
