"""What the system is told about the memory that tensors take."""

from __future__ import annotations

import ctypes
import os
import sys


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
