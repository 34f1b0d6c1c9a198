"""Files appear together or not at all, and nothing is overwritten that an earlier run did not make."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava_export.errors import ExportError
from llava_export.staging import RECORD, staged, write_whole

NAMES = ("llava.json", "a.bin", "z.bin")


def run(output: Path, content: str = "new", **options) -> None:
    """Write all of NAMES to a folder, each with the same content."""
    with staged(output, name="llava", names=NAMES, last="llava.json", **options) as folder:
        for name in NAMES:
            (folder / name).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    """Return what the files of a folder say, by their names, without the record."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != RECORD}


def test_staged_files_appear_together_with_the_manifest_last(tmp_path, monkeypatch):
    moved = []
    replace = os.replace

    def record_and_replace(source: Path, target: Path) -> None:
        moved.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record_and_replace)
    with staged(tmp_path / "out", name="llava", names=NAMES, last="llava.json") as folder:
        for name in ("llava.json", "z.bin", "a.bin"):
            (folder / name).write_text(name)
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".llava.partial"]
    assert [name for name in moved if name != RECORD] == ["a.bin", "z.bin", "llava.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, "a.bin", "llava.json", "z.bin"]


def test_an_interrupted_export_leaves_the_old_package(tmp_path):
    (tmp_path / "llava.json").write_text("old")
    with (
        pytest.raises(KeyboardInterrupt),
        staged(tmp_path, name="llava", names=NAMES, last="llava.json", overwrite=True) as folder,
    ):
        (folder / "llava.json").write_text("new")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["llava.json"]
    assert (tmp_path / "llava.json").read_text() == "old"


def test_what_a_killed_export_left_is_cleared(tmp_path):
    (tmp_path / ".llava.partial").mkdir()
    (tmp_path / ".llava.partial" / "llava.pte").write_text("half")
    with staged(tmp_path, name="llava", names=NAMES, last="llava.json") as folder:
        assert list(folder.iterdir()) == []


def test_a_later_run_replaces_what_an_earlier_one_made(tmp_path):
    run(tmp_path, "first")
    run(tmp_path, "second")
    assert contents(tmp_path) == dict.fromkeys(NAMES, "second")


@pytest.mark.parametrize("name", NAMES)
def test_files_of_others_are_kept(name, tmp_path):
    (tmp_path / name).write_text("precious")
    with pytest.raises(ExportError, match=rf"{name} is there, and no earlier export made it.*--overwrite"):
        run(tmp_path)
    assert contents(tmp_path) == {name: "precious"}
    run(tmp_path, overwrite=True)
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")


def test_a_file_that_was_changed_since_is_somebodys_work(tmp_path):
    run(tmp_path)
    (tmp_path / "a.bin").write_text("edited")
    with pytest.raises(ExportError, match=r"a.bin is there"):
        run(tmp_path)
    assert contents(tmp_path)["a.bin"] == "edited"


def test_links_and_folders_of_others_are_kept(tmp_path):
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match=r"a.bin is there"):
        run(tmp_path)
    run(tmp_path, overwrite=True)
    assert (tmp_path / "elsewhere").read_text() == "precious" and not (tmp_path / "a.bin").is_symlink()
    (tmp_path / "z.bin").unlink()
    (tmp_path / "z.bin").mkdir()
    (tmp_path / "z.bin" / "deep").write_text("precious")
    with pytest.raises(ExportError, match=r"z.bin is there"):
        run(tmp_path)
    assert (tmp_path / "z.bin" / "deep").read_text() == "precious"


def test_folders_that_a_run_made_are_replaced_unless_they_were_changed(tmp_path):
    def make() -> None:
        with staged(tmp_path, name="split", names=["part"], last="part") as folder:
            (folder / "part").mkdir()
            (folder / "part" / "weights").write_text("w")

    make()
    make()
    (tmp_path / "part" / "notes.txt").write_text("precious")
    with pytest.raises(ExportError, match="part is there"):
        make()
    assert (tmp_path / "part" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("where", [".", "..", "sub"])
def test_outputs_that_belong_to_the_input_are_refused(where, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "sub").mkdir(parents=True)
    for folder in (checkpoint, checkpoint / "sub"):
        (folder / "config.json").write_text("precious")
    with (
        pytest.raises(ExportError, match="belongs to the checkpoint"),
        staged(
            checkpoint / where,
            name="x",
            names=["config.json", "checkpoint"],
            last="config.json",
            inputs=[checkpoint],
            overwrite=True,
        ),
    ):
        raise AssertionError("refused before")
    assert (checkpoint / "config.json").read_text() == "precious"


@pytest.mark.parametrize("record", ["", "[]", '{"a.bin": 5}', "not JSON", "\udce4"])
def test_a_record_that_is_damaged_makes_nothing_ours(record, tmp_path):
    run(tmp_path)
    (tmp_path / RECORD).write_bytes(record.encode(errors="surrogateescape"))
    with pytest.raises(ExportError, match="is there"):
        run(tmp_path)
    run(tmp_path, overwrite=True)
    run(tmp_path)


def test_a_run_that_is_killed_while_files_move_does_not_stand_in_the_way(tmp_path, monkeypatch):
    run(tmp_path, "first")
    replace = os.replace
    moved: list[Path] = []

    def stop_at_the_second(source: Path, target: Path) -> None:
        if target.name in NAMES:
            if moved:
                raise KeyboardInterrupt
            moved.append(target)
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", stop_at_the_second)
        run(tmp_path, "second")
    assert not (tmp_path / "llava.json").exists()  # which shows that the package is incomplete
    run(tmp_path, "third")
    assert contents(tmp_path) == dict.fromkeys(NAMES, "third")


def test_the_second_of_two_at_once_is_told_who_is_at_work(tmp_path):
    script = f"""
import sys, time
from llava_export.staging import staged
with staged({str(tmp_path)!r} and __import__("pathlib").Path({str(tmp_path)!r}), name="llava", names=["a"], last="a"):
    print("ready", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "ready\n"
        with pytest.raises(ExportError, match=rf"process {first.pid} is writing to"):
            run(tmp_path)
        assert (tmp_path / ".llava.partial").is_dir()
        first.kill()
    run(tmp_path)  # the lock of a process that is dead is gone, and so is what it left
    assert contents(tmp_path) == dict.fromkeys(NAMES, "new")
    shutil.rmtree(tmp_path)


def test_a_text_replaces_a_file_in_one_step_and_leaves_it_where_it_cannot_be_written(tmp_path, monkeypatch):
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(file)
    for text in ("one", "two"):
        write_whole(link, text)
        assert file.read_text() == text and link.is_symlink()
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "begins\ud800")
    assert contents(tmp_path) == {"file": "two", "link": "two"}
    end, beginning = os.pipe()
    write_whole(Path(f"/dev/fd/{beginning}"), "three")
    os.close(beginning)
    with open(end) as pipe:
        assert pipe.read() == "three"


def test_names_that_are_not_written_anew_are_removed(tmp_path):
    """As a package of another model has another kind of tokenizer, which runners would find first."""
    run(tmp_path)
    (tmp_path / "mine.bin").write_text("mine")
    with staged(tmp_path, name="llava", names=NAMES, last="llava.json") as folder:
        for name in ("llava.json", "z.bin"):
            (folder / name).write_text("newer")
    assert contents(tmp_path) == {"llava.json": "newer", "z.bin": "newer", "mine.bin": "mine"}
