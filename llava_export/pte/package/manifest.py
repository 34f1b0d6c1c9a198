"""The manifest: which files make the package, their checksums, and the versions that made them."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from llava_runner.contract import FileRecord, Manifest, ModelCard, signatures
from llava_runner.program_file import file_sha256, structure_sha256

DISTRIBUTIONS = ("executorch", "torch", "torchao", "sentencepiece", "llava_export")


def build_manifest(folder: Path, *, program: str, card: ModelCard) -> Manifest:
    """Return the manifest of all files in ``folder``. The manifest itself must not be there yet."""
    files = {path.name: file_record(path) for path in sorted(folder.iterdir())}
    return Manifest(
        program=program,
        methods=signatures(card),
        card=card,
        versions=versions(),
        files=files,
        structure_sha256=structure_sha256(folder / program),
    )


def versions() -> dict[str, str]:
    """Return the installed versions of Python and of the distributions that make a program."""
    return {"python": platform.python_version(), **{name: version(name) for name in DISTRIBUTIONS}}


def file_record(path: Path) -> FileRecord:
    """Return the size of a file in bytes, and its SHA-256."""
    return FileRecord(bytes=path.stat().st_size, sha256=file_sha256(path))
