"""What stands in a file's place, or beside a program: pipes, devices, loops of links, and damaged neighbors."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_runner.errors import UserError
from llava_runner.image import prepare_image
from llava_runner.program import Program
from llava_runner.tokenizer_file import load_tokenizer
from tests.fuzz.corpus import segments


@pytest.fixture
def no_files(tmp_path) -> list[Path]:
    """A folder, a pipe, a loop of symbolic links, and a device without an end, each named as a file of any kind."""
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "zeros.pt").symlink_to("/dev/zero")
    return sorted(tmp_path.iterdir())


def load_tensor(path: Path) -> object:
    """Read an image tensor. Raises ``ImageError``."""
    return prepare_image(path, image_size=28, image_mean=(0.5, 0.5, 0.5), image_aspect_ratio="pad")


OPENED_BY: dict[str, Callable[[Path], object]] = {
    "--model-path": Program.open,
    "--tokenizer-path": load_tokenizer,
    "--image": load_tensor,
}


@pytest.mark.parametrize("flag", OPENED_BY)
def test_what_is_no_file_is_refused_at_once(flag, no_files, llava_main, tiny_package):
    for path in no_files:
        flags = [f"--model-path={tiny_package.program}", "--prompt=What?", "--packed-cache-path=off", f"{flag}={path}"]
        done = subprocess.run([llava_main, *flags], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), (path, done.stderr)
        assert done.stderr.startswith(f"error: {path}"), done.stderr
        with pytest.raises(UserError):
            OPENED_BY[flag](path)


def test_a_manifest_that_is_a_loop_is_refused(llava_main, tiny_package, tmp_path):
    for name in ("llava.pte", "tokenizer.bin"):
        (tmp_path / name).symlink_to(tiny_package.folder / name)
    (tmp_path / "llava.json").symlink_to("llava.json")
    flags = [f"--model-path={tmp_path / 'llava.pte'}", "--prompt=What?"]
    done = subprocess.run([llava_main, *flags], capture_output=True, text=True, timeout=30)
    assert (done.returncode, "llava.json: Too many levels of symbolic links" in done.stderr) == (2, True), done.stderr


def test_a_manifest_of_a_million_lists_is_read_or_refused(llava_main, tiny_package, tmp_path):
    for name in ("llava.pte", "tokenizer.bin"):
        (tmp_path / name).symlink_to(tiny_package.folder / name)
    (tmp_path / "llava.json").write_text("[" * 10**6)
    flags = [f"--model-path={tmp_path / 'llava.pte'}", "--prompt=What?", "--max-new-tokens=2"]
    done = subprocess.run([llava_main, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 2), done.stderr


def test_segments_that_share_their_bytes_are_refused(llava_main, tiny_package, tmp_path):
    """A small file could otherwise have terabytes to read."""
    (tmp_path / "tokenizer.bin").symlink_to(tiny_package.folder / "tokenizer.bin")
    path = tmp_path / "llava.pte"
    flags = [f"--model-path={path}", "--prompt=What?"]
    for places, message in ((((0, 20), (20, 20)), "cannot be loaded"), (((0, 40), (0, 40)), "is damaged")):
        path.write_bytes(segments(places))
        done = subprocess.run([llava_main, *flags], capture_output=True, text=True, timeout=60)
        assert (done.returncode, f"error: {path} {message}" in done.stderr) == (2, True), done.stderr
