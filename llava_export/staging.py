"""The staging folder: files appear in the output folder complete and together, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(output_dir: Path, *, name: str, last: str) -> Iterator[Path]:
    """Yield a folder ``.<name>.partial`` to write to, and move its files to ``output_dir`` when the block succeeds.

    The file ``last`` moves last, and its old version is removed first. So a package that was interrupted while its
    files moved has no manifest, which shows that it is incomplete. A folder that a killed run left behind is removed.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    folder = output_dir / f".{name}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        (output_dir / last).unlink(missing_ok=True)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
            os.replace(path, output_dir / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
