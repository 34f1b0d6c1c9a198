"""Token ids in a file of numpy's, for the fuzzer of Python's parsers."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.corpus import open_corpus


def saved(array: np.ndarray) -> bytes:
    """Return the bytes of a file with an array."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


IDS = [saved(np.arange(20, dtype=dtype)) for dtype in ("uint8", "int32", ">i8")]


def read(path: Path) -> None:
    """Read a file as a corpus."""
    open_corpus(path, _checkpoint()).windows(2, length=4)


@cache
def _checkpoint() -> Checkpoint:
    return open_checkpoint(str(CHECKPOINTS["tiny-llava"]))
