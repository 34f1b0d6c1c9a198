"""The files of a package before they are loaded: find them, and check that the program is whole and the right one."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llava_runner.contract import TOKENIZERS, manifest_path
from llava_runner.errors import PackageError
from llava_runner.flatbuffer import Flatbuffer

# A .pte begins with the flatbuffer's root offset (skipped here) and the file identifier. ExecuTorch's extended header
# follows: its magic, its length, the size of the flatbuffer, and the offset and the size of the segments. All numbers
# are little-endian.
PTE_HEAD = struct.Struct("<4x4s4sIQQQ")
PTE_IDENTIFIER_PREFIX = b"ET"
EXTENDED_HEADER_MAGIC = b"eh00"
STRUCTURE_AT_MOST = 256 << 20  # bytes that ExecuTorch interprets; a program with more is damaged

# Numbers of fields in ExecuTorch's program.fbs.
SEGMENTS, CONSTANT_SEGMENT, NAMED_DATA = 4, 5, 7  # of Program
OFFSET, SIZE = 0, 1  # of DataSegment
CONSTANT_INDEX = 0  # of SubsegmentOffsets
SEGMENT_INDEX = 1  # of NamedData


def find_program(package: Path) -> Path:
    """Return the one ``.pte`` in a package's folder. Return ``package`` itself if it is not a folder.

    Raises ``PackageError`` if the path does not exist, or if the folder has no program or several.
    """
    if not package.exists():
        raise PackageError(f"{package} does not exist")
    if not package.is_dir():
        return package
    programs = sorted(package.glob("*.pte"))
    if len(programs) != 1:
        found = f"{len(programs)} programs: {', '.join(path.name for path in programs)}" if programs else "no program"
        raise PackageError(f"{package} has {found}; a package has one .pte, or name the file itself")
    return programs[0]


def find_tokenizer(folder: Path) -> Path:
    """Return the tokenizer in a package's folder. Raises ``PackageError`` if there is none."""
    for name in TOKENIZERS:
        if (folder / name).exists():
            return folder / name
    raise PackageError(f"{folder} has no {', no '.join(TOKENIZERS)}; name the tokenizer's path")


def check_file(path: Path) -> None:
    """Raise ``PackageError`` unless the file is a complete ``.pte``.

    The runtime maps the file into memory. Reading a map beyond the end of its file kills the process.
    """
    if not path.exists():
        raise PackageError(f"{path} does not exist")
    if not path.is_file():
        raise PackageError(f"{path} is not a file; a program is a file that ends in .pte")
    with path.open("rb") as file:
        _read_head(path, file)


def check_structure(path: Path) -> None:
    """Compare what ExecuTorch interprets of a program with the manifest next to it, if there is one.

    Raises ``PackageError`` if they differ.
    """
    expected = _in_manifest(path, "structure_sha256")
    if expected is not None and structure_sha256(path) != expected:
        raise _damaged(path)


def check_whole(path: Path) -> None:
    """Compare all bytes of a program with the manifest next to it.

    Raises ``PackageError`` if they differ, or if there is no manifest.
    """
    if not manifest_path(path).exists():
        raise PackageError(f"{path} cannot be checked: {manifest_path(path).name} is not next to it. Copy it, too.")
    expected = _in_manifest(path, "files", path.name, "sha256")
    if expected is not None and file_sha256(path) != expected:
        raise _damaged(path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def structure_sha256(path: Path) -> str:
    """Return the SHA-256, as hex digits, of all that ExecuTorch interprets of a program.

    That is the flatbuffer, then the segments that hold no weights. The flatbuffer names the weights by the SHA-256 of
    their bytes, so it covers what they must be. Raises ``PackageError`` if the file is damaged.
    """
    check_file(path)
    with path.open("rb") as file:
        program_size, segment_offset, segment_size = _read_head(path, file)
        if program_size > STRUCTURE_AT_MOST:
            raise _damaged(path)
        file.seek(0)
        program = file.read(program_size)
        digest = hashlib.sha256(program)
        try:
            for offset, size in _structural_segments(program, segment_size):
                file.seek(segment_offset + offset)
                digest.update(file.read(size))
        except struct.error as error:  # something lies behind the end
            raise _damaged(path) from error
    return digest.hexdigest()


def _read_head(path: Path, file: BinaryIO) -> tuple[int, int, int]:
    """Return the flatbuffer's size, and offset and size of the segments, in bytes. Raises ``PackageError``."""
    head = file.read(PTE_HEAD.size)
    size = os.fstat(file.fileno()).st_size
    if len(head) < PTE_HEAD.size:
        raise PackageError(f"{path} is not an ExecuTorch program: it has only {size} bytes")
    identifier, magic, _, program_size, segment_offset, segment_size = PTE_HEAD.unpack(head)
    if not identifier.startswith(PTE_IDENTIFIER_PREFIX) or magic != EXTENDED_HEADER_MAGIC:
        raise PackageError(f"{path} is not an ExecuTorch program (.pte)")
    expected = max(program_size, segment_offset + segment_size)
    if size < expected:
        raise PackageError(f"{path} is truncated: {size} of {expected} bytes. Copy or export it again.")
    return program_size, segment_offset, segment_size


def _in_manifest(program: Path, *names: str) -> str | None:
    """Return a text in the manifest of a program; None if there is no manifest, or no such text in it."""
    try:
        found: Any = json.loads(manifest_path(program).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise PackageError(f"{manifest_path(program)} cannot be read: {error}. Copy or export it again.") from error
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _damaged(path: Path) -> PackageError:
    return PackageError(
        f"{path} is damaged: its SHA-256 is not the one in {manifest_path(path).name}. Copy or export it again."
    )


def _structural_segments(program: bytes, segment_size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and size of each segment that holds no weights. Raises ``struct.error`` for a damaged flatbuffer."""
    flatbuffer = Flatbuffer(program)
    root = flatbuffer.follow(0)
    data = {flatbuffer.number("<I", named, SEGMENT_INDEX) for named in flatbuffer.tables(root, NAMED_DATA)}
    if constants := flatbuffer.field(root, CONSTANT_SEGMENT):
        data.add(flatbuffer.number("<I", flatbuffer.follow(constants), CONSTANT_INDEX))
    left = min(STRUCTURE_AT_MOST, segment_size)  # segments that share bytes could be far more
    for index, segment in enumerate(flatbuffer.tables(root, SEGMENTS)):
        offset, size = (flatbuffer.number("<Q", segment, field) for field in (OFFSET, SIZE))
        if offset + size > segment_size:
            raise struct.error("a segment ends behind the file")
        if index not in data:
            left -= size
            if left < 0:
                raise struct.error("the segments are too large")
            yield offset, size
