"""The benchmark that asks about scenes with each way to guess tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llava_runner.engine_library import ENGINES, LIBRARY, VARIABLE
from tests.integration.conftest import ROOT


@pytest.mark.parametrize("engine", ENGINES)
def test_no_way_to_guess_changes_an_answer(engine, native_build, tiny_package, language_model, tmp_path):
    """The draft is random: it is hardly ever right. What was said before is."""
    command = [sys.executable, "-m", "benchmarks.drafts_on_scenes", tiny_package.folder, "--engine", engine]
    flags = ["--draft-model-path", language_model.folder, "--scenes", "2", "--json", tmp_path / "figures.json"]
    environment = {**os.environ, VARIABLE: str(native_build / LIBRARY)}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "repeated answers" in done.stdout
    written = json.loads((tmp_path / "figures.json").read_text())
    assert (written["engine"], written["scenes"]) == (engine, 2)
    for way, (first, repeated) in {way: rows.values() for way, rows in written["ways"].items()}.items():
        assert (first["answers"], repeated["answers"], first["differ"], repeated["differ"]) == (4, 2, 0, 0)
        assert (way == "no guesses") == (first["drafted"] + repeated["drafted"] == 0)
    right = {way: rows["repeated answers"]["accepted"] for way, rows in written["ways"].items()}
    assert right["prompt lookup"] > right["draft model"] < 5
