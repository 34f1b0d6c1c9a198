"""Refuses to write to files that the same command reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from llava_export.cli.flags import UsageError
from llava_runner.contract import TOKENIZERS, golden_path, manifest_path

FileNumber = tuple[int, int]  # what a file has on its disk, whatever its names are: the device, and the number there


def refuse_to_replace(written: Iterable[Path | None], read: Iterable[Path]) -> None:
    """Raise ``UsageError`` if a file to write is there and is one that is read, or in a folder that is read.

    ``read`` has files and folders, of which some may not exist.
    """
    files = {number: file for file in written if file is not None and file.is_file() and (number := _number(file))}
    if not files:
        return
    around = {file: set(map(_number, _folders(file))) for file in files.values()}
    for path in read:
        for number in _numbers(path):
            if number in files:
                raise UsageError(f"{files[number]} belongs to what is read; write to another file")
            for file, folders in around.items():
                if number in folders:
                    raise UsageError(f"{file} is in {path}, which is read; write to another folder")


def package_files(package: Path) -> list[Path]:
    """Return what is read of a package: its folder, or where the program itself is named, the files beside it."""
    if package.is_dir():
        return [package]
    tokenizers = [package.parent / name for name in TOKENIZERS]
    return [package, manifest_path(package), golden_path(package), *tokenizers]


def checkpoint_files(*models: str | None) -> list[Path]:
    """Return the local folders and files among what names checkpoints and parts of them."""
    from llava_export.checkpoint.locate import local_folder

    return [found for model in models if model and (found := local_folder(model)) is not None]


def _folders(file: Path) -> set[Path]:
    """Return the folders around a file, and around the one that it is a link to."""
    return {*file.resolve().parents, *Path(os.path.abspath(file)).parents}


def _numbers(path: Path) -> Iterator[FileNumber]:
    """Yield the numbers of a file, or of a folder and of the files in it, which may be links to other places."""
    if number := _number(path):
        yield number
    try:
        for entry in path.iterdir() if path.is_dir() else ():
            if entry.is_file() and (number := _number(entry)):
                yield number
    except OSError:  # told where it is read
        return


def _number(path: Path) -> FileNumber | None:
    """Return the number of a file, or None for no file. A name in a data set may be one that no file can have."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
