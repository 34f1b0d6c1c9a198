"""What the system is told about the memory that tensors take, and what it says is free."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def return_free_memory() -> None:
    """Give back to the system what Python and torch have freed.

    The C library keeps it for later: after a lowering, hundreds of megabytes in holes between small objects that live.
    Other systems than Linux with glibc do as they please.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def use_huge_pages() -> None:
    """Have torch ask Linux for pages of 2 MiB; to be called before its first tensor.

    Clearing small pages of a new tensor one by one can take longer than reading its values and multiplying by them.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def available_memory() -> int | None:
    """Bytes that processes may still take without swapping; None where the system does not say."""
    return min(_memory_limits(), default=None)


def _memory_limits() -> Iterator[int]:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")  # the limit of a container
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()) != "max":
        yield int(limit) - int((group / "memory.current").read_text())
