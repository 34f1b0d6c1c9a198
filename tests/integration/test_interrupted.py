"""An export that is killed leaves one named folder, and the next one a whole package."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava_runner import contract
from tests.commands import script

PACKAGE = {"llava.pte", "llava.json", "llava.golden"}


def start(checkpoint: Path, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-u", "-m", "llava_export.export", "--model", checkpoint, "--output-dir", folder]
    return subprocess.Popen([*command, "--recipe", "fp32"], stdout=subprocess.PIPE, text=True)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kill_after(stage: str, checkpoint: Path, folder: Path, *, by: signal.Signals) -> None:
    """Let an export finish ``stage`` and no more."""
    with start(checkpoint, folder) as process:
        for line in process.stdout:
            if line.startswith(stage):
                process.send_signal(by)
                break
    assert process.returncode != 0, f"the export was over before {stage} was seen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("interrupted")


@pytest.mark.parametrize(
    "stage", ["write tokenizer", "lower template", "record float answer", "quantize and pack", "stamp layers"]
)
def test_killed(stage, folder, checkpoint_of):
    """One after the other in one folder: each finds what the one before it left."""
    kill_after(stage, checkpoint_of("plain"), folder, by=signal.SIGKILL)
    assert names(folder) == {".llava.partial"}


def test_then_run_again(folder, checkpoint_of):
    with start(checkpoint_of("plain"), folder) as process:
        process.communicate()
    assert process.returncode == 0
    assert names(folder) == PACKAGE
    assert script("test_pte", folder / "llava.pte").returncode == 0


def test_an_older_package_outlives_one_that_is_killed(folder, checkpoint_of):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kill_after("record float answer", checkpoint_of("plain_twin"), folder, by=signal.SIGINT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_killed_between_two_files(folder):
    """Files are moved with the manifest gone, so whoever runs half of each package is told."""
    contract.manifest_path(folder / "llava.pte").unlink()
    done = script("test_pte", folder / "llava.pte")
    assert done.returncode == 2
    assert "llava.json is missing" in done.stderr
