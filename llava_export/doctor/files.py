"""The files of a package against its manifest: missing, truncated, changed, and left over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from llava_export.doctor.findings import Finding, broken, doubtful
from llava_export.pte.package.manifest import file_record
from llava_runner import contract
from llava_runner.contract import FileRecord, Manifest
from llava_runner.documents import MAX_BYTES
from llava_runner.errors import PackageError

MISSING = "is missing from the package"
COPY = "Copy it again from where it was exported, or export the model again."


def open_manifest(program: Path) -> tuple[Manifest | None, Finding | None]:
    """Return the manifest of a program, or None and what is wrong with it."""
    path = contract.manifest_path(program)
    if not path.is_file():
        return None, doubtful(f"{path.name} is missing: nothing says whether the files are those of the export", COPY)
    try:
        with path.open("rb") as file:
            manifest = Manifest.from_json(file.read(MAX_BYTES + 1))
    except PackageError as error:
        return None, broken(f"{path.name} cannot be read: {error}", "" if "Export" in str(error) else COPY)
    if manifest.program == program.name:
        return manifest, None
    return None, doubtful(
        f"{path.name} is the manifest of {manifest.program}, not of {program.name}",
        f"Call the program {manifest.program} again, and its manifest and golden record alike.",
    )


def damaged_files(program: Path, manifest: Manifest) -> dict[str, str]:
    """Return what is wrong with the files that a manifest lists, by name. All of them are read."""
    problems = {name: _problem(program.parent / name, recorded) for name, recorded in manifest.files.items()}
    return {name: problem for name, problem in problems.items() if problem}


def check_files(program: Path, manifest: Manifest, *, structure: str, damaged: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with the files that a manifest lists.

    ``structure`` is the program's ``structure_sha256``, and ``damaged`` what ``damaged_files`` returned.
    """
    for name, problem in damaged.items():
        is_needed = name == program.name or name in contract.TOKENIZERS
        # One of the two tokenizers is enough.
        yield (broken if is_needed and problem != MISSING else doubtful)(f"{name} {problem}", COPY)
    if structure != manifest.structure_sha256 and program.name not in damaged:
        yield broken(
            f"what ExecuTorch interprets of {program.name} is not what the manifest says, so runners refuse it", COPY
        )


def left_over(program: Path) -> Iterator[Finding]:
    """Yield what an export that was killed has left beside a program."""
    for path in sorted(program.parent.glob(".*.partial")):
        yield doubtful(
            f"{path.name} was left by an export that was killed, or one is at work: the files may be of an earlier one",
            f"Export again, or remove {path.name}.",
        )


def _problem(path: Path, recorded: FileRecord) -> str | None:
    """Return what is wrong with a file, or None."""
    if not path.is_file():
        return MISSING
    size = path.stat().st_size
    if size < recorded.bytes:
        return f"is truncated, or another file: it has {size:,} of {recorded.bytes:,} bytes"
    if file_record(path) != recorded:
        return "is not the file that was exported: its SHA-256 differs"
    return None
