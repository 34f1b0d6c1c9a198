"""Damaged files and the C++ runner, built with the address and undefined-behavior sanitizers."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import cmake
import executorch
import pytest
from PIL import Image

from llava_runner.program import Program

ROOT = Path(__file__).parents[2]
FORMS = 1500  # damaged ones of each of the seven files


@pytest.fixture(scope="module")
def sanitized(native_build) -> Path:
    """The folder of a build of the parts with sanitizers."""
    folder = ROOT / "cmake-out" / "sanitized"
    tool = Path(cmake.CMAKE_BIN_DIR) / "cmake"
    sdk = next(iter(executorch.__path__))
    for command in (
        [tool, "-S", ROOT / "runner/cpp", "-B", folder, f"-DCMAKE_PREFIX_PATH={sdk}", "-DLLAVA_SANITIZE=ON"],
        [tool, "--build", folder, "--parallel", "2", "--target", "attention_test", "mutations"],
    ):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_attention_reads_and_writes_within_bounds(sanitized):
    done = subprocess.run([sanitized / "attention_test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ten_thousand_damaged_files_are_read_or_refused(sanitized, tiny_package, tmp_path):
    image = Image.open(tiny_package.folder / "image.png").resize((60, 50))
    for suffix in (".jpg", ".png", ".ppm"):
        exif = Image.Exif()
        exif[0x0112] = 6
        if suffix == ".ppm":
            image.save(tmp_path / "image.ppm")
        else:
            image.save(tmp_path / f"image{suffix}", exif=exif)
    card = asdict(Program.open(tiny_package.program).card)
    (tmp_path / "card.json").write_text(json.dumps(card))
    package = [tiny_package.folder / name for name in ("llava.pte", "tokenizer.bin", "image.pt")]
    files = [*tmp_path.iterdir(), *package]
    assert len(files) == 7
    done = subprocess.run([sanitized / "mutations", str(FORMS), *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        refused = int(line.split()[-2])
        assert 0 < refused < FORMS, line
