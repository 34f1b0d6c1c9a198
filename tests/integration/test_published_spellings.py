"""What was published can still be typed: old names of commands and flags, and both distributions as wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import llava, script

ROOT = Path(__file__).parents[2]
QUESTION = "What is in the image?"
PUBLISHED = (
    "--tokenizer_path={folder}/tokenizer.bin",
    "--image_path={folder}/image.pt",
    "--seq_len=768",
    "--temperature=0",
)


@pytest.fixture(scope="module")
def flags(tiny_package) -> list[str]:
    """The published flags of both runners, for the package of the built-in model."""
    texts = (f"--model_path={tiny_package.program}", *PUBLISHED)
    return [text.format(folder=tiny_package.folder) for text in texts]


def test_test_pte(tiny_package):
    done = script("test_pte", tiny_package.program, tiny_package.folder / "image.png")
    assert done.returncode == 0 and "PASS" in done.stdout and "The image shows" in done.stdout, done.stderr


def test_llava_run_and_llava_main_give_the_same_answer(flags, llava_main, tiny_package):
    """With the published flags, with hyphens, and as ``llava run``."""
    published = script("llava-run", *flags, "--prompt=ASSISTANT:")
    assert published.returncode == 0 and published.stdout.strip(), published.stderr
    hyphened = [flag.partition("=")[0].replace("_", "-") + "=" + flag.partition("=")[2] for flag in flags]
    for command in ([llava_main, *flags], [llava_main, *hyphened]):
        done = subprocess.run([*command, "--prompt=ASSISTANT:"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, published.stdout), done.stderr
    done = llava("run", tiny_package.folder, "--image", tiny_package.folder / "image.pt", "--prompt", "ASSISTANT:")
    assert (done.returncode, done.stdout) == (0, published.stdout), done.stderr


def test_export_as_published(tmp_path):
    """``python -m llava_export.export`` with the published flags; what it would make is enough here."""
    command = [sys.executable, "-m", "llava_export.export", "--pte-name", "llava.pte", "--with-artifacts"]
    for with_flags in (
        ["--model", "tiny-llava", "--dry-run"],
        ["--model=tiny-llava", "--dry_run", "--max_seq_len=700"],
    ):
        done = subprocess.run([*command, *with_flags], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0 and "the program" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """An environment in which Python finds both distributions as their wheels have them."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for project, package in ((ROOT / "runner", "llava_runner"), (ROOT, "llava_export")):
        copy = folder / package  # a build leaves folders in its source
        shutil.copytree(project / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(project / name, copy)
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, copy], check=True, capture_output=True)
    wheels = sorted(folder.glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in wheels] == ["llava_export", "llava_runner"]
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", folder / "site", *wheels], check=True, capture_output=True
    )
    return {**os.environ, "PYTHONPATH": str(folder / "site")}


def test_wheels_export_and_run_from_an_empty_folder(installed, tiny_package, tmp_path):
    where = "import llava_export, llava_runner; print(llava_export.__file__, llava_runner.__file__)"
    found = subprocess.run([sys.executable, "-c", where], capture_output=True, text=True, env=installed, cwd=tmp_path)
    assert found.stdout.split() and all("wheels" in path for path in found.stdout.split()), found.stdout
    done = llava("gguf", "--model", "tiny-llava", "--output-dir", "gguf", env=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = llava("run", tiny_package.folder, "--prompt", QUESTION, env=installed, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
