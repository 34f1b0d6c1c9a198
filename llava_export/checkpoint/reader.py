"""Reads a checkpoint folder's shards, one tensor at a time: opening costs no memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llava_export.errors import CheckpointError
from llava_export.system import available_memory

# In order of preference: the index of a sharded checkpoint, then the single file, of each format.
LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
FITS, KEPT = 0.8, 0.6  # shares of the free memory: checkpoints below the first stay in it, of larger ones the second
# By the names that safetensors gives them.
FLOAT_DTYPES: dict[str, torch.dtype] = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Entry:
    """Where a shard's file has a tensor. A dtype that the reader does not know is the format's name for it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype | str
    start: int

    @property
    def num_elements(self) -> int:
        """From the first to the last that the tensor has, as they lie in the file."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class Shard:
    """A file whose tensors are read one at a time. ``is_kept``: it stays in the system's cache, once it has been read.

    Read and not mapped: of a map every page has to be found again each time.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.shapes = {key: entry.shape for key, entry in entries.items()}
        self.dtypes = {key: entry.dtype for key, entry in entries.items()}
        self.is_kept = True
        self._path = path
        self._entries = entries
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (open as long as the shard is)

    def prefetch(self, key: str) -> None:
        """Start to read a tensor from disk without waiting for it."""
        self._advise(key, "POSIX_FADV_WILLNEED")

    def read(self, key: str) -> Tensor:
        entry = self._entries[key]
        elements = torch.empty(entry.num_elements, dtype=entry.dtype)  # type: ignore[arg-type]  # checked by the reader
        unread = memoryview(elements.view(torch.uint8).numpy())  # type: ignore[arg-type]
        self._file.seek(entry.start)
        while unread:
            count = self._file.readinto(unread)
            if not count:
                raise CheckpointError(f"{self._path} is shorter than it says it is; download it again")
            unread = unread[count:]
        if not self.is_kept:
            self._advise(key, "POSIX_FADV_DONTNEED")
        return elements.as_strided(entry.shape, entry.stride)

    def _advise(self, key: str, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):
            entry = self._entries[key]
            length = entry.num_elements * entry.dtype.itemsize  # type: ignore[union-attr]
            os.posix_fadvise(self._file.fileno(), entry.start, length, getattr(os, advice))


class LoadedShard:
    """A ``.bin`` of torch before 1.6, which can only be read as a whole."""

    is_kept = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        self.dtypes = {key: tensor.dtype for key, tensor in tensors.items()}

    def prefetch(self, key: str) -> None:
        """Nothing: it is there."""

    def read(self, key: str) -> Tensor:
        return self._tensors[key]


def open_safetensors(path: Path) -> Shard:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again") from error
    with open(path, "rb") as file:
        # The format: the length of a JSON header, the header, then the tensors' bytes, at offsets the header tells.
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    entries = {}
    for key, shape in shapes.items():
        dtype, (begin, _) = header[key]["dtype"], header[key]["data_offsets"]
        stride = torch.empty(shape, device="meta").stride()
        entries[key] = Entry(tuple(shape), stride, FLOAT_DTYPES.get(dtype, dtype), 8 + length + begin)
    return Shard(path, entries)


def open_bin(path: Path) -> Shard | LoadedShard:
    """A file of ``torch.save``. Only tensors are unpickled; one with code in it is refused."""
    if not _is_zip(path):
        return LoadedShard(_unpickle(path))
    # torch then reads no values, but says of each storage where in the file it begins.
    with FakeTensorMode():
        tensors = _unpickle(path)
    entries = {}
    for key, tensor in tensors.items():
        begin = tensor.untyped_storage()._checkpoint_offset
        assert begin is not None, "torch has always set it"
        start = begin + int(tensor.storage_offset()) * tensor.element_size()
        entries[key] = Entry(tuple(tensor.shape), tensor.stride(), tensor.dtype, start)
    return Shard(path, entries)


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors, or is damaged; it was not loaded") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete; download it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors")
    return tensors


class CheckpointReader:
    """All tensors of a checkpoint by key. ``shapes`` is known without reading any; raises ``CheckpointError``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: dict[Path, Shard | LoadedShard] = {}
        self.add(folder)

    def add(self, folder: Path) -> None:
        """Take in the tensors of another checkpoint, too: of the vision tower's, where it is one of its own."""
        self._shards |= {path: _open_shard(path) for path in _shard_paths(folder)}
        self._shard_of = {key: shard for shard in self._shards.values() for key in shard.shapes}
        self.shapes = {key: shape for shard in self._shards.values() for key, shape in shard.shapes.items()}
        if not self.shapes:
            raise CheckpointError(f"the weights in {self.folder} hold no tensors")
        self._keep_what_fits()

    def _keep_what_fits(self) -> None:
        """Choose what stays in the system's cache of a checkpoint that is larger than memory.

        The float model reads all of it once for each token. A cache that keeps what was read last would have lost the
        beginning by the end, every time.
        """
        free, sizes = available_memory(), {path: path.stat().st_size for path in self._shards}
        if free is None or sum(sizes.values()) < FITS * free:
            return
        kept = 0
        for path, shard in self._shards.items():
            kept += sizes[path]
            shard.is_kept = kept < KEPT * free

    def prefetch(self, key: str) -> None:
        """Have the system read a tensor from disk ahead of ``read``, where it can."""
        self._shard_of[key].prefetch(key)

    def dtype(self, key: str) -> torch.dtype:
        """Of a tensor; raises ``CheckpointError`` for one that is not a float's."""
        found = self._shard_of[key].dtypes[key]
        if not isinstance(found, torch.dtype) or found not in FLOAT_DTYPES.values():
            raise CheckpointError(
                f"{key} in {self.folder} is {found}; only float16, bfloat16 and float32 weights can be read, not ones "
                "quantized already"
            )
        return found

    def read(self, key: str) -> Tensor:
        """In the checkpoint's own dtype."""
        self.dtype(key)
        return self._shard_of[key].read(key)


def _open_shard(path: Path) -> Shard | LoadedShard:
    if not path.is_file():
        raise CheckpointError(f"shard {path.name} is named by the index but missing in {path.parent}")
    return open_safetensors(path) if path.suffix == ".safetensors" else open_bin(path)


def _shard_paths(folder: Path) -> list[Path]:
    for index_name, single_name in LAYOUTS:
        if (folder / index_name).is_file():
            try:
                weight_map = json.loads((folder / index_name).read_text())["weight_map"]
                return [folder / name for name in sorted(set(weight_map.values()))]
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{folder / index_name} is damaged: {error}") from error
        if (folder / single_name).is_file():
            return [folder / single_name]
    names = ", ".join(single for _, single in LAYOUTS)
    raise CheckpointError(f"no weights in {folder}: looked for {names} and their sharded forms")


def _is_zip(path: Path) -> bool:
    """Files of torch before 1.6 are not."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
