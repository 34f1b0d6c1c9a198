"""An export that is killed leaves one partial folder. The next export removes it and writes a whole package."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llava_export.staging import RECORD
from llava_runner import contract
from tests.commands import script

PACKAGE = {"llava.pte", "llava.json", "llava.golden"}


def start(checkpoint: Path, folder: Path) -> subprocess.Popen[str]:
    """Start an export of ``checkpoint`` to ``folder``. Return its process."""
    flags: list[str | Path] = ["--model", checkpoint, "--output-dir", folder, "--recipe", "fp32"]
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "llava_export.export", *flags], stdout=subprocess.PIPE, text=True
    )


def names(folder: Path) -> set[str]:
    """Return the names of what is in a folder."""
    return {path.name for path in folder.iterdir()}


def kill_after(stage: str, checkpoint: Path, folder: Path, *, by: signal.Signals) -> None:
    """Start an export, and send it the signal ``by`` as soon as it has finished ``stage``."""
    with start(checkpoint, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(stage):
                process.send_signal(by)
                break
    assert process.returncode != 0, f"the export was over before {stage} was seen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return the folder that all exports of this file write to, one after the other."""
    return tmp_path_factory.mktemp("interrupted")


@pytest.mark.parametrize("stage", ["write tokenizer", "quantize and pack", "stamp layers"])
def test_killed_export_leaves_only_the_partial_folder(stage, folder, checkpoint_of):
    """Each export finds what the one before it left."""
    kill_after(stage, checkpoint_of("shallow"), folder, by=signal.SIGKILL)
    assert names(folder) == {".llava.partial"}


def test_next_export_writes_a_whole_package(folder, checkpoint_of):
    with start(checkpoint_of("shallow"), folder) as process:
        process.communicate()
    assert process.returncode == 0
    assert names(folder) == PACKAGE | {RECORD}
    assert script("test_pte", folder / "llava.pte").returncode == 0


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_asked_to_end_leaves_an_older_package_as_it_was(by, folder, checkpoint_of):
    """And nothing else: no partial folder."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kill_after("write tokenizer", checkpoint_of("plain_twin"), folder, by=by)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_package_without_its_manifest_is_refused(folder):
    """An export that is killed while it moves files leaves no manifest, so a mixture of two packages is refused."""
    contract.manifest_path(folder / "llava.pte").unlink()
    done = script("test_pte", folder / "llava.pte")
    assert done.returncode == 2
    assert "llava.json is missing" in done.stderr
