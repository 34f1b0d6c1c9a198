"""Calls of the C++ runner with packed weights."""

from __future__ import annotations

import subprocess
from pathlib import Path

QUESTION = "What is in the image?"
PACKING = "note: packing weights for this processor, once"


def command(llava_main: Path, package: Path, *flags: str) -> list[str]:
    files = [f"--model-path={package}/llava.pte", f"--image={package}/image.png"]
    return [str(llava_main), *files, f"--prompt={QUESTION}", *flags]


def ask(llava_main: Path, package: Path, *flags: str, **kwargs) -> tuple[str, list[str]]:
    """The answer, and the notes beside it."""
    done = subprocess.run(command(llava_main, package, *flags), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if line.startswith("note: ")]


def packed_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("llava*.pack*"))
