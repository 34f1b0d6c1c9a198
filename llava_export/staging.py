"""The staging folder: files appear in the output folder complete and together, or not at all.

Nothing is overwritten that an earlier run did not make. What a run made stands in ``RECORD`` in the output folder, with
sizes and times, so a file that somebody put in its place is noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava_export.errors import ExportError

RECORD = ".llava_export.json"
Fingerprint = Any  # size and time of a file; for a folder those of each file in it, by its path


@contextmanager
def staged(
    output_dir: Path,
    *,
    name: str,
    names: Collection[str],
    last: str,
    inputs: Collection[Path] = (),
    overwrite: bool = False,
) -> Iterator[Path]:
    """Yield a folder to write ``names`` to, and move all that is in it to ``output_dir`` when the block succeeds.

    Files of these names that are in ``output_dir`` already are replaced, or removed where no new one was written.

    The file ``last`` moves last, and its old version is removed first. So a package that was interrupted while its
    files moved has no manifest, which shows that it is incomplete. What a killed run left behind is removed.

    Raises ``ExportError``, before anything is written, if another process is at work there, if a file of these names is
    there that no earlier run made and ``overwrite`` is False, or if one of them belongs to ``inputs``.
    """
    _check_inputs(output_dir, names, inputs)
    output_dir.mkdir(parents=True, exist_ok=True)
    home = output_dir / f".{name}.partial"
    with _locked(home):
        made = _read_record(output_dir)
        if not overwrite:
            _check_targets(output_dir, names, made)
        folder = home / "files"
        folder.mkdir()
        yield folder
        new = {path.name: fingerprint(path) for path in folder.iterdir()}
        # While files move, both the old and the new version of each count as made by us.
        _write_record(output_dir, {**made, **{name: [*made.get(name, ()), new[name]] for name in new}})
        _remove(output_dir / last)
        for name in set(names) - new.keys():  # of an earlier run, such as the tokenizer of another model
            _remove(output_dir / name)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
            target = output_dir / path.name
            if target.is_dir():  # only an empty folder could be replaced
                _remove(target)
            os.replace(path, target)
        _write_record(output_dir, {**made, **{name: [new[name]] for name in new}})


def write_whole(file: Path, text: str) -> None:
    """Write a text to a file, which is replaced in one step. A device or a pipe is written to as it is."""
    if file.exists() and not file.is_file():
        file.write_text(text, encoding="utf-8")
        return
    file = file.resolve()  # a link stays one
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)


def fingerprint(path: Path) -> Fingerprint:
    """Return what tells a file from another of its name; of a folder, of all files in it."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if not file.is_dir())
        return {str(file.relative_to(path)): fingerprint(file) for file in files}
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _check_inputs(output_dir: Path, names: Collection[str], inputs: Collection[Path]) -> None:
    """Raise ``ExportError`` if a file of these names would replace a part of what is read."""
    for name in names:
        target = (output_dir / name).resolve()
        for folder in (path.resolve() for path in inputs):
            if target == folder or target in folder.parents or (folder in target.parents and target.exists()):
                raise ExportError(f"{output_dir / name} belongs to the checkpoint; choose another --output-dir")


def _check_targets(output_dir: Path, names: Collection[str], made: Mapping[str, list[Fingerprint]]) -> None:
    """Raise ``ExportError`` if a file of these names is there that no earlier run made."""
    for name in names:
        target = output_dir / name
        if os.path.lexists(target) and (target.is_symlink() or fingerprint(target) not in made.get(name, ())):
            raise ExportError(
                f"{target} is there, and no earlier export made it as it is now; --overwrite replaces it, or choose "
                "another --output-dir"
            )


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Make the staging folder and hold it, empty but for the number of this process, while the ``with`` block runs.

    Raises ``ExportError`` if another process holds it. The system lets go of the folder of a process that was killed.
    """
    descriptor = _lock(home)
    try:
        for path in home.iterdir():
            _remove(path)
        (home / "process").write_text(str(os.getpid()))
        yield
    finally:
        shutil.rmtree(home, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _lock(home: Path) -> int | None:
    """Return a descriptor that holds the folder, or None where the system has no such locks."""
    home.mkdir(exist_ok=True)
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), home.stat()):
            return descriptor
    except BlockingIOError:
        process = home / "process"
        who = f"process {process.read_text()}" if process.is_file() else "another process"
        os.close(descriptor)
        raise ExportError(f"{who} is writing to {home.parent}; wait for it, or choose another --output-dir") from None
    except OSError:  # a file system without locks, or the folder was removed by the process that held it
        pass
    os.close(descriptor)
    if not home.exists():
        return _lock(home)
    return None


def _read_record(output_dir: Path) -> dict[str, list[Fingerprint]]:
    """Return the fingerprints that each file may have that earlier runs made, by its name."""
    try:
        record = json.loads((output_dir / RECORD).read_bytes())
    except (OSError, ValueError):  # none, or somebody else's: then nothing was made by us
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: known for name, known in record.items() if isinstance(known, list)}


def _write_record(output_dir: Path, record: Mapping[str, list[Fingerprint]]) -> None:
    """Replace the record in one step."""
    new = output_dir / f"{RECORD}.new"
    new.write_text(json.dumps(record))
    os.replace(new, output_dir / RECORD)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
