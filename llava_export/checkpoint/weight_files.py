"""Finds the files of a folder that weights are in, and which tensor is in which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llava_export.errors import CheckpointError
from llava_runner.documents import read_object, shown

# The files that weights can be in: of each format the index of several shards, and a single file. Of the first format
# that is found the single file is read, as transformers does, or else the shards of the index.
LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
MAX_NAME_LENGTH = 60  # of a file; published ones have 32 characters


@dataclass(frozen=True)
class WeightFiles:
    """The files of a checkpoint's weights.

    ``file_of`` has the name of a tensor's file, as the index says; it is empty without an index. ``notes`` are
    sentences for the user about files that are there and are not read.
    """

    paths: list[Path]
    file_of: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_weight_files(folder: Path) -> WeightFiles:
    """Return the files of weights in a folder. Raises ``CheckpointError`` if there are none, or some are missing."""
    missing: dict[str, list[str]] = {}  # shards, by the index that names them
    for index_name, single_name in LAYOUTS:
        has_single, has_index = (folder / single_name).is_file(), (folder / index_name).is_file()
        file_of = _read_index(folder / index_name) if has_index else {}
        files = sorted(set(file_of.values()))
        if absent := [name for name in files if not (folder / name).is_file()]:
            missing[index_name] = absent
        if has_single and single_name not in files:
            notes = _notes(single_name, missing)
            if has_index and not absent:
                notes += (f"{single_name} is read, as transformers does, and not the shards that {index_name} names",)
            return WeightFiles([folder / single_name], notes=notes)
        if has_index and not absent:
            return WeightFiles([folder / name for name in files], file_of, _notes(index_name, missing))
    for names in missing.values():  # of the first index
        more = f", and {len(names) - 1} more are" if len(names) > 1 else ""
        raise CheckpointError(f"shard {names[0]} is named by the index but missing in {folder}{more}")
    singles = ", ".join(single for _, single in LAYOUTS)
    raise CheckpointError(f"no weights in {folder}: looked for {singles} and their sharded forms")


def _notes(read: str, missing: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Return what to say where ``read`` is read though there is an index of ``missing`` shards."""
    return tuple(
        f"{read} is read: {index_name} names {len(names)} {'shards that are' if len(names) > 1 else 'shard that is'} "
        f"not there ({names[0]}{', ...' if len(names) > 1 else ''})"
        for index_name, names in missing.items()
    )


def has_weights(folder: Path) -> bool:
    """Return whether a folder has a file of weights, or the index of some."""
    return any((folder / name).is_file() for names in LAYOUTS for name in names)


def _read_index(path: Path) -> dict[str, str]:
    """Return the file name of each tensor that an index names. Raises ``CheckpointError`` if the index is damaged."""
    index = read_object(path, error=CheckpointError).section("weight_map")
    file_of = {key: index.text(key) for key in index}
    if bad := [file for file in file_of.values() if not _is_name(file)]:
        raise CheckpointError(f"{path} names {shown(bad[0])}, which is no file in its folder")
    return file_of


def _is_name(file: str) -> bool:
    """Return whether a text can be the name of a file in a folder, and no path that leads out of it."""
    return Path(file).name == file and file not in ("", "..") and len(file) <= MAX_NAME_LENGTH
