"""The file of results: a line that says what was asked of what, then a line for each item, written as it comes.

A run that was killed goes on where the file ends. A line that was cut short is removed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from llava_export.errors import DatasetError
from llava_export.evaluate.records import Record
from llava_export.staging import write_whole
from llava_runner.documents import JsonObject, read_lines

VERSION = 1
MARK = "llava_evaluation"  # the first field of the first line, with the version
DIFFERENT = {
    "packages": "of another package",
    "dataset": "of another data set, or of one that has changed",
    "options": "of other options",
}


class ResultsFile:
    """The open file of results. Each record is written at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, record: Record) -> None:
        """Write a record, so that it stays even if this process is killed."""
        self._file.write(record.to_json().encode() + b"\n")
        self._file.flush()


def read_results(path: Path, header: Mapping[str, Any], *, overwrite: bool) -> dict[str, Record]:
    """Return the records that an earlier run with the same header has written, by their ids.

    Raises ``DatasetError`` for a file of another run, or one that is no file of results, unless it is to be replaced.
    """
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path} is not a file, so that no later run could go on with it")
    if overwrite or not path.exists():
        return {}
    lines = _whole_lines(path)
    first = next(lines, None)
    if first is None or first.get(MARK) != VERSION:
        raise DatasetError(f"{path} is there, and is not a file of results; --overwrite replaces it")
    for part, what in DIFFERENT.items():
        if _identity(first.get(part)) != _identity(header[part]):
            raise DatasetError(f"{path} has the results {what}; --overwrite replaces it, or name another --output")
    found = {record.id: record for record in map(Record.from_object, lines)}
    if any(len(record.results) != len(header["packages"]) for record in found.values()):
        raise DatasetError(f"{path} is damaged: an item has not the results of every package")
    return found


@contextmanager
def results_file(path: Path | None, header: Mapping[str, Any], *, overwrite: bool) -> Iterator[ResultsFile | None]:
    """Open the file of results, to add to what ``read_results`` returns, and hold it. Yields None for no path.

    A new file appears with its first line. Raises ``DatasetError`` if another process writes to it.
    """
    if path is None:
        yield None
        return
    first = json.dumps({MARK: VERSION, **header}) + "\n"
    if not path.exists():
        write_whole(path, first)
    with path.open("r+b") as file:
        _hold(file, path)  # before anything of it is changed
        file.truncate(0 if overwrite else _whole_bytes(path))
        if overwrite:
            file.write(first.encode())
            file.flush()
        file.seek(0, os.SEEK_END)
        yield ResultsFile(file)


def _identity(part: Any) -> Any:
    """Return what of a part of a header decides: all but names, which are for people."""
    if isinstance(part, list):
        return [_identity(each) for each in part]
    return {name: value for name, value in part.items() if name != "name"} if isinstance(part, dict) else part


def _whole_lines(path: Path) -> Iterator[JsonObject]:
    """Yield the objects of the lines that end. Raises ``DatasetError``."""
    left = _whole_bytes(path)
    if left:
        yield from read_lines(path, error=DatasetError, size=left)


def _whole_bytes(path: Path) -> int:
    """Return the size of a file up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                return start + at + 1
            end = start
    return 0


def _hold(file: BinaryIO, path: Path) -> None:
    """Lock a file for as long as it is open. Raises ``DatasetError`` if another process has it."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DatasetError(f"another process is writing to {path}; wait for it, or name another --output") from None
    except OSError:  # a file system without locks
        return
