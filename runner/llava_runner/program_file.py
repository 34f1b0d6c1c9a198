"""The file of a program before it is loaded: find it in its package, and check that it is complete."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from llava_runner.errors import PackageError

# A .pte begins with the flatbuffer's root offset (skipped here) and the file identifier. ExecuTorch's extended header
# follows: its magic, its length, the size of the flatbuffer, and the offset and the size of the segments. All numbers
# are little-endian.
PTE_HEAD = struct.Struct("<4x4s4sIQQQ")
PTE_IDENTIFIER_PREFIX = b"ET"
EXTENDED_HEADER_MAGIC = b"eh00"


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


def check_file(path: Path) -> None:
    """Raise ``PackageError`` unless the file is a complete ``.pte``.

    The runtime maps the file into memory. Reading a map beyond the end of its file kills the process.
    """
    if not path.exists():
        raise PackageError(f"{path} does not exist")
    if not path.is_file():
        raise PackageError(f"{path} is not a file; a program is a file that ends in .pte")
    with path.open("rb") as file:
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
