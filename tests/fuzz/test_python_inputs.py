"""A short run of the damaged inputs, and what happens when a parser fails."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path

import pytest

from llava_runner.errors import PackageError
from tests.fuzz import python_inputs, targets
from tests.fuzz.mutations import mutated_document

ROOT = Path(__file__).parents[2]


def test_damaged_inputs_are_taken_or_refused(tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.python_inputs",
        "--seed",
        "0",
        "--inputs",
        "1160",
        "--minutes",
        "3",
        "--save",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    *counts, total = done.stdout.splitlines()[1:]
    assert total == "1,160 inputs, 0 failures"
    for line in counts:
        assert " 0 refused" not in line, line
    assert sum(" 0 taken" not in line for line in counts) > 0.8 * len(counts)


def test_every_seed_is_taken_as_it_is(tmp_path):
    """Otherwise the damage done to it would not be what is refused."""
    (tmp_path / "scratch").mkdir()
    odd = {"config", "torch file", "old torch file"}  # whose other seeds are refused on purpose
    for name, target in targets.targets(tmp_path / "scratch").items():
        for i, seed in enumerate(target.seeds[:1] if name in odd else target.seeds):
            folder = tmp_path / name / str(i)
            folder.mkdir(parents=True)
            target.prepare(folder)
            (folder / target.name).write_bytes(seed)
            target.read(folder / target.name)


def test_the_same_seed_gives_the_same_inputs():
    first, second = ([mutated_document(b'{"a": [1, {"b": 2}]}', random.Random(n)) for n in range(50)] for _ in range(2))
    assert first == second and len(set(first)) > 20


def arguments(folder: Path) -> argparse.Namespace:
    """Return what the command line says for a short run."""
    return argparse.Namespace(
        minutes=1.0, inputs=20, seed=0, target=None, save=folder / "saved", scratch=folder / "scratch"
    )


@pytest.mark.parametrize(("error", "code"), [(KeyError("x"), python_inputs.FAILED), (PackageError("x"), 0)])
def test_whatever_is_no_users_error_is_saved_and_fails(error, code, tmp_path, monkeypatch, capfd):
    def read(path: Path) -> None:
        raise error

    target = targets.Target("x.json", [b'{"a": 1}'], read)
    monkeypatch.setattr(targets, "targets", lambda scratch: {"one": target})
    monkeypatch.setattr(python_inputs, "limit_memory", lambda: None)
    monkeypatch.setattr(python_inputs.os, "dup2", lambda *_: None)
    (tmp_path / "scratch").mkdir()
    assert python_inputs.feed(arguments(tmp_path)) == code
    saved = list((tmp_path / "saved").glob("one-*"))
    assert len(saved) == (20 if code else 0)
    assert ("20 inputs, 20 failures" if code else "20 inputs, 0 failures") in capfd.readouterr().out


def test_the_input_of_a_process_that_died_is_saved(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / python_inputs.CURRENT).write_bytes(b"deadly")
    (scratch / python_inputs.DONE).write_text("20")
    ended: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], -11)
    monkeypatch.setattr(python_inputs.subprocess, "run", lambda *_: ended)
    assert python_inputs.supervise(arguments(tmp_path), scratch) == 1
    assert [path.read_bytes() for path in (tmp_path / "saved").iterdir()] == [b"deadly"]
