"""The packed weights that the C++ runner keeps beside a program: torn, left over, or not to be trusted.

A runner makes such files anew where they are damaged. They are named here because a start takes longer then, and
because the same may happen again.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from llava_export.doctor.findings import Finding, doubtful, note
from llava_export.system import free_disk, readable_size

# STEM.PROGRAM-MACHINE-CONTENT.packed: see runner/cpp/cache/packed_cache.cpp.
NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}-[0-9a-f]{32}")
KEY_DIGITS = 16
# With which ExecuTorch ends the file: where the list of weights begins, how many there are, a magic, its version.
TRAILER = struct.Struct("<QI4sI")
MAGIC = b"CWPX"
BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
ANEW = "Remove it; the next start of llava_main makes it anew."


def packed_files(program: Path) -> list[Path]:
    """Return the files of packed weights of programs with this name, whole or not."""
    files = (path for suffix in ("packed", "packing") for path in program.parent.glob(f"*.{suffix}"))
    return sorted(path for path in files if path.name.startswith(f"{program.stem}."))


def check_packed(program: Path, *, structure: str) -> Iterator[Finding]:
    """Yield what is wrong with the packed weights of a program. ``structure`` is its ``structure_sha256``."""
    is_ready = False
    for path in packed_files(program):
        problem = _problem(path, stem=program.stem, structure=structure)
        is_ready |= problem is None
        if problem:
            yield doubtful(f"{path.name} {problem}", ANEW)
    if is_ready:
        return
    wanted, free = program.stat().st_size // 8 * 9, free_disk(program.parent)
    if free is not None and free < wanted:
        yield doubtful(
            f"llava_main cannot keep packed weights here: they need {readable_size(wanted)} of disk, and "
            f"{readable_size(free)} are free",
            "Free some, or name another folder with --packed-cache-path.",
        )
    elif not os.access(program.parent, os.W_OK):
        yield note(
            "llava_main cannot keep packed weights here, since you cannot write to the folder: every start packs them",
            "Name another folder with --packed-cache-path.",
        )


def _problem(path: Path, *, stem: str, structure: str) -> str | None:
    """Return what is wrong with a file of packed weights, or None."""
    status = path.lstat()
    name = NAME.fullmatch(path.name.removeprefix(f"{stem}.").removesuffix(".packed"))
    if path.suffix == ".packing":
        return "is torn: llava_main was ended while it packed weights, or is at work"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file, so llava_main does not use it"
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to another user ({status.st_uid}), so llava_main does not use it"
    if status.st_mode & BY_OTHERS:
        return "can be written by others, so llava_main does not use it"
    if name is None:
        return "has not the name that llava_main gives such files"
    if name[1] != structure[:KEY_DIGITS]:
        return "was packed of another program that had this name"
    return None if _is_whole(path, status.st_size) else "is torn: its end is missing"


def _is_whole(path: Path, size: int) -> bool:
    """Return whether a file has the end that ExecuTorch writes last."""
    if size < TRAILER.size or not os.access(path, os.R_OK):
        return False
    with path.open("rb") as file:
        file.seek(size - TRAILER.size)
        begin, _, magic, _ = TRAILER.unpack(file.read(TRAILER.size))
    return magic == MAGIC and begin < size
