"""ExecuTorch's flatbuffers as Python values.

ExecuTorch ships their schemas, and ``flatc``, a program that turns any number of them into JSON in one call. Its Python
modules that do the same take seconds and 300 MB to import.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import executorch

SDK = Path(next(iter(executorch.__path__)))
FLATC = SDK / "data/bin/flatc"


# In a flatbuffer many offsets may show one table, and JSON has it once for each. So a small file can stand for any
# amount of JSON. A program whose tables are all its own has up to 6 bytes of JSON for each of its bytes, and a list of
# bytes up to 20.
EXPANSION, SLACK = 32, 1 << 12
MAX_BYTES = 64 << 20  # of all flatbuffers of a program; LLaVA-1.5-7B's have 2 MB
MAX_JSON_BYTES = 256 << 20
FLATC_MEMORY = 64 << 20  # bytes, before those for its JSON
# Signals that end flatc beyond its limits: too much JSON, too long, and no memory. Other ones end it at damaged files.
BEYOND_LIMITS = (signal.SIGXFSZ, signal.SIGXCPU, signal.SIGKILL, signal.SIGABRT)
SECONDS, SECONDS_PER_MEGABYTE = 2, 1  # of processor time for a call of flatc


def decoded(schema: str, flatbuffers: Collection[bytes]) -> list[dict[str, Any]]:
    """Return the root tables of some flatbuffers, in order. ``schema`` is a path within the executorch package.

    Raises ``ValueError`` if one of them is no flatbuffer of this schema, or if they stand for far more than they hold.
    """
    if sum(map(len, flatbuffers)) > MAX_BYTES:
        raise ValueError(f"its flatbuffers have more than {MAX_BYTES:,} bytes")
    found: dict[int, dict[str, Any]] = {}
    total = 0
    for batch in _batches([(i, content) for i, content in enumerate(flatbuffers)]):
        with TemporaryDirectory() as name:
            files = [Path(name) / f"{i}.bin" for i, _ in batch]
            for file, (_, content) in zip(files, batch, strict=True):
                file.write_bytes(content)
            _run_flatc(schema, files, largest=max(len(content) for _, content in batch))
            total += sum(file.with_suffix(".json").stat().st_size for file in files)
            if total > MAX_JSON_BYTES:
                raise ValueError("its flatbuffers stand for far more than they hold")
            for (i, _), file in zip(batch, files, strict=True):
                found[i] = json.loads(_finite(file.with_suffix(".json").read_text("utf-8")))
    return [found[i] for i in range(len(flatbuffers))]


def _batches(numbered: Sequence[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Yield flatbuffers of similar sizes together, since one limit holds for all files of a call of flatc."""
    batch: list[tuple[int, bytes]] = []
    for item in sorted(numbered, key=lambda it: -len(it[1])):
        if batch:
            limit = _json_limit(len(batch[0][1]))
            if len(item[1]) * 2 < len(batch[0][1]) or (len(batch) + 1) * limit > MAX_JSON_BYTES:
                yield batch
                batch = []
        batch.append(item)
    if batch:
        yield batch


def _json_limit(size: int) -> int:
    """Return the most bytes of JSON that a flatbuffer of ``size`` bytes may take."""
    return EXPANSION * size + SLACK


def _run_flatc(schema: str, files: Sequence[Path], *, largest: int) -> None:
    """Write a JSON file next to each file. Raises ``ValueError`` if flatc refuses one, or goes beyond its limits."""
    command = [str(FLATC), "--json", "--strict-json", "--defaults-json", str(SDK / schema), "--"]
    with subprocess.Popen(
        command + [file.name for file in files],
        cwd=files[0].parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        limit = _json_limit(largest)
        seconds = SECONDS + SECONDS_PER_MEGABYTE * sum(file.stat().st_size for file in files) // 10**6
        if hasattr(resource, "prlimit"):  # on Linux; elsewhere there is only the time
            for kind, value in (
                (resource.RLIMIT_FSIZE, limit),
                (resource.RLIMIT_AS, FLATC_MEMORY + 4 * limit),
                (resource.RLIMIT_CPU, seconds),
                (resource.RLIMIT_CORE, 0),
            ):
                with suppress(ProcessLookupError, PermissionError):  # it has ended already
                    resource.prlimit(process.pid, kind, (value, value))
        try:
            said, _ = process.communicate(timeout=60 * seconds)
        except BaseException:
            process.kill()
            raise
    if -process.returncode in BEYOND_LIMITS:
        raise ValueError("its flatbuffers stand for far more than they hold")
    if process.returncode:
        last = said.strip().rpartition("\n")[2]
        raise ValueError(f"flatc says {last!r}" if last else f"flatc ends with {process.returncode}")


def _finite(text: str) -> str:
    """Return JSON from ``flatc`` with infinity and NaN spelled as Python reads them.

    ``flatc`` spells them as C does. It writes one number a line.
    """
    text = re.sub(r'^(\s*(?:"\w+": )?-?)inf(,?)$', r"\1Infinity\2", text, flags=re.MULTILINE)
    return re.sub(r'^(\s*(?:"\w+": )?)-?nan(,?)$', r"\1NaN\2", text, flags=re.MULTILINE)
