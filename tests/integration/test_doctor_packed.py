"""``llava doctor`` knows the packed weights of the C++ runner, and names those that are not used."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava_export.pte.verify import read_manifest
from tests.doctor import examine
from tests.integration.llava_main import ask, packed_files

PACKED = "0123456789abcdef-" * 2 + "0123456789abcdef" * 2
# As ExecuTorch ends such a file.
WHOLE = b"\0" * 64 + struct.pack("<QI4sI", 0, 0, b"CWPX", 2)
OWN = "llava.PROGRAM-" + PACKED[17:] + ".packed"


def packed(name: str, content: bytes = b"", *, mode: int = 0o444) -> Callable[[Path], Any]:
    """Return a function that writes a file of packed weights. PROGRAM in its name is the program's digest."""

    def apply(package: Path) -> None:
        structure = read_manifest(package / "llava.pte").structure_sha256
        path = package / name.replace("PROGRAM", structure[:16])
        path.write_bytes(content)
        path.chmod(mode)

    return apply


DOUBTFUL = {
    "packed weights cut short": (packed(OWN, WHOLE[:-7]), "is torn: its end is missing", "llava_main makes it anew"),
    "packed weights of nothing": (packed(OWN), "is torn: its end is missing", "llava_main makes it anew"),
    "packed weights of another program": (
        packed(f"llava.{PACKED}.packed", WHOLE),
        "was packed of another program that had this name",
        "Remove it",
    ),
    "packing that was ended": (packed("llava.0123456789abcdef.packing"), "is torn: llava_main was ended", "Remove it"),
    "packed weights that others can write": (packed(OWN, WHOLE, mode=0o664), "can be written by others", "Remove it"),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_packed_weights_that_are_not_used_are_named(name, package, capsys):
    spoil, cause, remedy = DOUBTFUL[name]
    spoil(package)
    code, printed = examine(package, capsys=capsys)
    assert code == 1 and printed.count("doubtful: ") == 1 and cause in printed and remedy in printed


def test_packed_weights_that_are_whole_are_healthy(package, capsys):
    packed(OWN, WHOLE)(package)
    assert examine(package, capsys=capsys)[0] == 0


def test_the_packed_weights_of_the_runner_are_known(llava_main, package, capsys):
    ask(llava_main, package)
    assert examine(package, capsys=capsys)[0] == 0
    (path,) = packed_files(package)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    code, printed = examine(package, capsys=capsys)
    assert code == 1 and f"{path.name} is torn: its end is missing" in printed


def test_packed_weights_of_another_user_are_named(package, capsys, monkeypatch):
    packed(OWN, WHOLE)(package)
    (path,) = package.glob("*.packed")
    if os.geteuid() == 0:
        os.chown(path, 1234, -1)
    else:
        monkeypatch.setattr("llava_export.doctor.packed.os.geteuid", lambda: 1234)
    code, printed = examine(package, capsys=capsys)
    assert code == 1 and f"{path.name} belongs to another user" in printed


def test_a_disk_that_is_too_small_for_packed_weights_is_named(package, capsys, monkeypatch):
    monkeypatch.setattr("llava_export.doctor.packed.free_disk", lambda folder: 1 << 20)
    code, printed = examine(package, capsys=capsys)
    needed = (package / "llava.pte").stat().st_size * 9 / 8 / (1 << 20)
    assert code == 1 and f"they need {needed:.1f} MiB of disk, and 1.0 MiB are free" in printed
    assert "--packed-cache-path" in printed
