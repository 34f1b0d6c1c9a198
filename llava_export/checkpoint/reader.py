"""Reads a checkpoint folder's shards, one tensor at a time: opening costs no memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_export.errors import CheckpointError
from llava_export.memory import available_memory

# In order of preference: the index of a sharded checkpoint, then the single file, of each format.
LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
MAPPED_AT_MOST = 1 << 28  # bytes of a .bin that are read before it is mapped anew
FITS, KEPT = 0.8, 0.6  # shares of the free memory: checkpoints below the first stay in it, of larger ones the second
# By the names that safetensors gives them.
FLOAT_DTYPES: dict[str, torch.dtype] = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class SafetensorsShard:
    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                self.shapes = {
                    key: tuple(file.get_slice(key).get_shape())
                    for key in file.keys()  # noqa: SIM118 (not a dict)
                }
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again") from error
        self.is_kept = True  # in the system's cache, once it has been read
        self._path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (open as long as the shard is)
        # The format: the length of a JSON header, the header, then the tensors' bytes, at offsets the header tells.
        (length,) = struct.unpack("<Q", self._file.read(8))
        header = json.loads(self._file.read(length))
        self._offsets = {key: header[key]["data_offsets"] for key in self.shapes}
        self.dtypes = {key: FLOAT_DTYPES.get(header[key]["dtype"]) or header[key]["dtype"] for key in self.shapes}
        self._start = 8 + length

    def expect(self, key: str) -> None:
        """Start to read a tensor from disk without waiting for it."""
        self._advise(key, "POSIX_FADV_WILLNEED")

    def read(self, key: str) -> Tensor:
        # Read and not mapped: of a map every page has to be found again each time.
        tensor = torch.empty(self.shapes[key], dtype=self.dtypes[key])
        unread = memoryview(tensor.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
        self._file.seek(self._start + self._offsets[key][0])
        while unread:
            count = self._file.readinto(unread)
            if not count:
                raise CheckpointError(f"{self._path} has become shorter while it was read")
            unread = unread[count:]
        if not self.is_kept:
            self._advise(key, "POSIX_FADV_DONTNEED")
        return tensor

    def _advise(self, key: str, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):
            begin, end = self._offsets[key]
            os.posix_fadvise(self._file.fileno(), self._start + begin, end - begin, getattr(os, advice))


class PickleShard:
    """A ``.bin`` of ``torch.save``. Only tensors are unpickled; a file with code in it is refused."""

    is_kept = True  # it is mapped: the system decides

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_mapped = _is_zip(path)
        self._tensors = self._load()
        self._bytes_read = 0
        self.shapes = {key: tuple(tensor.shape) for key, tensor in self._tensors.items()}
        self.dtypes = {key: tensor.dtype for key, tensor in self._tensors.items()}

    def read(self, key: str) -> Tensor:
        # A new map in place of the old: the pages that were read leave memory with the tensors they were read for.
        if self._is_mapped and self._bytes_read > MAPPED_AT_MOST:
            self._tensors, self._bytes_read = self._load(), 0
        self._bytes_read += self._tensors[key].nbytes
        return self._tensors[key]

    def expect(self, key: str) -> None:
        """Nothing: where in the file a tensor lies is not known."""

    def _load(self) -> dict[str, Tensor]:
        path = self._path
        try:
            tensors = torch.load(path, map_location="cpu", mmap=self._is_mapped, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path} holds more than tensors, or is damaged; it was not loaded") from error
        except (RuntimeError, EOFError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or incomplete; download it again") from error
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise CheckpointError(f"{path} is not a dictionary of tensors")
        return tensors


class CheckpointReader:
    """All tensors of a folder by key. ``shapes`` is known without reading any; raises ``CheckpointError``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards = {path: _open_shard(path) for path in _shard_paths(folder)}
        self._shard_of = {key: shard for shard in self._shards.values() for key in shard.shapes}
        self.shapes = {key: shape for shard in self._shards.values() for key, shape in shard.shapes.items()}
        if not self.shapes:
            raise CheckpointError(f"the weights in {folder} hold no tensors")
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

    def expect(self, key: str) -> None:
        """Have the system read a tensor from disk ahead of ``read``, where it can."""
        self._shard_of[key].expect(key)

    def read(self, key: str) -> Tensor:
        """In the checkpoint's own dtype."""
        shard = self._shard_of[key]
        if shard.dtypes[key] not in FLOAT_DTYPES.values():
            raise CheckpointError(
                f"{key} in {self.folder} is {shard.dtypes[key]}; only float16, bfloat16 and float32 weights can be "
                "read, not ones quantized already"
            )
        return shard.read(key)


def _open_shard(path: Path) -> SafetensorsShard | PickleShard:
    if not path.is_file():
        raise CheckpointError(f"shard {path.name} is named by the index but missing in {path.parent}")
    return SafetensorsShard(path) if path.suffix == ".safetensors" else PickleShard(path)


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
    """Files of torch before 1.6 are not zip archives, and only those can be mapped."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
