"""ExecuTorch's flatbuffers as Python values.

ExecuTorch ships their schemas, and ``flatc``, a program that turns any number of them into JSON in one call. Its Python
modules that do the same take seconds and 300 MB to import.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import executorch

SDK = Path(next(iter(executorch.__path__)))
FLATC = SDK / "data/bin/flatc"


def decoded(schema: str, flatbuffers: Collection[bytes]) -> list[dict[str, Any]]:
    """Return the root tables of some flatbuffers, in order. ``schema`` is a path within the executorch package.

    Raises ``ValueError`` if one of them is no flatbuffer of this schema.
    """
    if not flatbuffers:
        return []
    with TemporaryDirectory() as name:
        files = [Path(name) / f"{i}.bin" for i in range(len(flatbuffers))]
        for file, content in zip(files, flatbuffers, strict=True):
            file.write_bytes(content)
        command = [str(FLATC), "--json", "--strict-json", "--defaults-json", str(SDK / schema), "--"]
        done = subprocess.run(command + [file.name for file in files], cwd=name, capture_output=True, text=True)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().rpartition("\n")[2]
            raise ValueError(f"flatc says {said!r}" if said else f"flatc ends with {done.returncode}")
        return [json.loads(_finite(file.with_suffix(".json").read_text("utf-8"))) for file in files]


def _finite(text: str) -> str:
    """Return JSON from ``flatc`` with infinity and NaN spelled as Python reads them.

    ``flatc`` spells them as C does. It writes one number a line.
    """
    text = re.sub(r'^(\s*(?:"\w+": )?-?)inf(,?)$', r"\1Infinity\2", text, flags=re.MULTILINE)
    return re.sub(r'^(\s*(?:"\w+": )?)-?nan(,?)$', r"\1NaN\2", text, flags=re.MULTILINE)
