"""What the system is told about memory that is no longer needed."""

from __future__ import annotations

import ctypes
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
