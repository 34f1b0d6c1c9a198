"""Files appear in the output folder whole and together, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(output_dir: Path, *, name: str, last: str) -> Iterator[Path]:
    """A folder ``.<name>.partial`` to write to; when the block ends well its files move to ``output_dir``.

    ``last`` moves last and its old version is removed first, so a package that was interrupted in the very moment of
    moving has no manifest and is seen to be incomplete. What an earlier, killed run left behind is removed.
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
