"""Checkpoints in the hub's cache, without a network: which snapshot is taken, and what is missing in it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.locate import locate
from llava_export.errors import CheckpointError
from tests.checkpoints import TINY_LLAVA
from tests.commands import llava

ID = "some-lab/llava-birds"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder of a model in an empty cache. The hub is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "hub" / "models--some-lab--llava-birds"


def add_snapshot(hub: Path, name: str) -> Path:
    """Put tiny-llava into the cache as the hub's own library does: links to blobs. Return the snapshot's folder."""
    blobs, snapshot = hub / "blobs", hub / "snapshots" / name
    blobs.mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    for path in TINY_LLAVA.iterdir():
        blob = blobs / f"{name}-{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def set_main(hub: Path, name: str) -> None:
    """Let ``main`` be the snapshot of this name."""
    (hub / "refs").mkdir(exist_ok=True)
    (hub / "refs" / "main").write_text(name)


def test_one_snapshot_is_taken_without_a_main(hub):
    snapshot = add_snapshot(hub, "8c7f0b")
    assert locate(ID) == snapshot
    assert open_checkpoint(ID).own_folders[0] == snapshot
    set_main(hub, "gone")
    assert locate(ID) == snapshot


def test_of_several_snapshots_main_is_taken(hub):
    add_snapshot(hub, "1a")
    main = add_snapshot(hub, "2b")
    with pytest.raises(CheckpointError, match=r"2 snapshots of which none is known to be main; give one: --model .*1a"):
        locate(ID)
    set_main(hub, "2b")
    assert locate(ID) == main


def test_the_command_line_works_offline(hub, monkeypatch):
    add_snapshot(hub, "8c7f0b")
    monkeypatch.setenv("HF_HOME", str(hub.parent.parent))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = llava("export", "--model", ID, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("names", [["model.safetensors"], ["tokenizer.model", "tokenizer.json"], ["config.json"]])
def test_files_whose_blobs_are_missing_are_named(names, hub):
    snapshot = add_snapshot(hub, "8c7f0b")
    for name in names:
        (hub / "blobs" / f"8c7f0b-{name}").unlink()
    with pytest.raises(CheckpointError, match=r"links to nothing.*download the model once more") as refused:
        open_checkpoint(ID)
    assert all(name in str(refused.value) for name in (*names, str(snapshot)))
    assert len(refused.value.lines) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], "no weights in"),
        (["tokenizer.model", "tokenizer.json"], "has no tokenizer.model and no tokenizer.json"),
        (["config.json"], "has no config.json"),
    ],
)
def test_files_that_were_not_downloaded_are_named(names, message, hub):
    snapshot = add_snapshot(hub, "8c7f0b")
    for name in names:
        (snapshot / name).unlink()
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(ID)


def test_without_a_snapshot_the_model_is_not_found(hub):
    (hub / "snapshots").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"{ID} cannot be downloaded"):
        locate(ID)
