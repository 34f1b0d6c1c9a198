"""The C++ runner for ARM where memory has pages of 16 or 64 KB, as on a Raspberry Pi 5 and newer phones, under qemu."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.integration.llava_main import PACKING, ask, packed_files

# Where a mapped part of a file begins in the file, in qemu's log of system calls.
MAPPED = re.compile(r"mmap\(\w+,\d+,[\w|]+,[\w|]+,\d+,(\w+)\) = 0x")


def on_pages_of(size: int) -> dict[str, str]:
    """Return the environment in which qemu has pages of ``size`` bytes."""
    return {**os.environ, "QEMU_PAGESIZE": str(size), "QEMU_CPU": "cortex-a76"}


@pytest.mark.parametrize("size", [16384, 65536])
def test_the_emulator_has_such_pages(size, aarch64_build):
    environment = {**on_pages_of(size), "LD_SHOW_AUXV": "1"}  # the loader prints what the kernel told it
    command = ["qemu-aarch64", aarch64_build / "llava_main", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert re.search(rf"^AT_PAGESZ:\s+{size}$", told, flags=re.MULTILINE)


@pytest.mark.parametrize(("first", "then"), [(4096, 16384), (16384, 65536), (65536, 16384)])
def test_weights_packed_on_pages_of_one_size_are_mapped_on_those_of_another(
    first, then, aarch64_build, package, expected, tmp_path
):
    log = tmp_path / "calls"
    command = emulated(aarch64_build / "llava_main", tmp_path)
    assert ask(command, package, env=on_pages_of(first)) == (expected, [PACKING])
    (packed,) = packed_files(package)
    before = packed.stat().st_mtime_ns
    environment = {**on_pages_of(then), "QEMU_STRACE": "1", "QEMU_LOG_FILENAME": str(log)}
    assert ask(command, package, env=environment) == (expected, [])
    assert packed.stat().st_mtime_ns == before
    calls = log.read_text(errors="replace")
    assert calls.count(f"mmap(NULL,{packed.stat().st_size},PROT_READ,MAP_SHARED,") == 2  # by us to try, by ExecuTorch
    offsets = [int(offset, 0) for offset in MAPPED.findall(calls)]
    assert sum(offset > 0 for offset in offsets) > 20 and not any(offset % then for offset in offsets)


def emulated(program: Path, folder: Path) -> Path:
    """Return a script that runs a program for ARM."""
    path = folder / program.name
    path.write_text(f'#!/bin/sh\nexec qemu-aarch64 "{program}" "$@"\n')
    path.chmod(0o755)
    return path
