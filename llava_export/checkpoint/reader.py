"""Reads a checkpoint's shards one tensor at a time. To open a checkpoint takes no memory."""

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

# The files that weights can be in: of each format the index of several shards, and a single file. The first one found
# is read.
LAYOUTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
# Checkpoints smaller than this fraction of the free memory stay in the system's file cache as a whole.
FITTING_FRACTION = 0.8
# Of a larger checkpoint, shards of up to this fraction of the free memory stay there.
KEPT_FRACTION = 0.6
# The types that can be read, by safetensors' names.
FLOAT_DTYPES: dict[str, torch.dtype] = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Entry:
    """A tensor in a shard's file.

    ``stride`` is in elements, and ``start`` is the offset of the first element in bytes. ``dtype`` is the format's own
    name where torch's type is not known.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype | str
    start: int

    @property
    def num_elements(self) -> int:
        """The number of elements in the file from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class Shard:
    """A file whose tensors are read one at a time.

    ``shapes`` and ``dtypes`` are by key. With ``is_kept`` the system may keep in its cache what was read. The file is
    read and not mapped: with a map, every page costs a page fault each time it is read.
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
        """Return a tensor in its own type. Raises ``CheckpointError`` if the file ends too early."""
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
        """Advise the system how a tensor's bytes will be used. Systems other than Linux take no advice."""
        if hasattr(os, "posix_fadvise"):
            entry = self._entries[key]
            length = entry.num_elements * entry.dtype.itemsize  # type: ignore[union-attr]
            os.posix_fadvise(self._file.fileno(), entry.start, length, getattr(os, advice))


class LoadedShard:
    """A ``.bin`` file of torch before 1.6, which can only be read as a whole. It has the members of ``Shard``."""

    is_kept = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        self.dtypes = {key: tensor.dtype for key, tensor in tensors.items()}

    def prefetch(self, key: str) -> None:
        """Do nothing: the tensor is in memory."""

    def read(self, key: str) -> Tensor:
        """Return a tensor in its own type."""
        return self._tensors[key]


def open_safetensors(path: Path) -> Shard:
    """Open a ``.safetensors`` file. Raises ``CheckpointError`` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again") from error
    with open(path, "rb") as file:
        # The file begins with the length of a JSON header, and the header. Then come the tensors' bytes. The header has
        # their offsets, counted from its own end.
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    entries = {}
    for key, shape in shapes.items():
        dtype, (begin, _) = header[key]["dtype"], header[key]["data_offsets"]
        stride = torch.empty(shape, device="meta").stride()
        entries[key] = Entry(tuple(shape), stride, FLOAT_DTYPES.get(dtype, dtype), 8 + length + begin)
    return Shard(path, entries)


def open_bin(path: Path) -> Shard | LoadedShard:
    """Open a file that ``torch.save`` wrote. Raises ``CheckpointError`` if it is damaged or holds more than tensors.

    Only tensors are unpickled, so code in the file does not run.
    """
    if not _is_zip(path):
        return LoadedShard(_unpickle(path))
    # With fake tensors torch reads no values, but notes where in the file each storage begins.
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
    """Return a ``.bin`` file's tensors by key. Raises ``CheckpointError``."""
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
    """All tensors of a checkpoint by key. ``shapes`` are known without reading any tensor."""

    def __init__(self, folder: Path) -> None:
        """Open the shards in ``folder``. Raises ``CheckpointError`` if there are none, or some are damaged."""
        self.folder = folder
        self._shards: dict[Path, Shard | LoadedShard] = {}
        self.add(folder)

    def add(self, folder: Path) -> None:
        """Add the tensors of another checkpoint, for example of the vision tower. Raises ``CheckpointError``."""
        self._shards |= {path: _open_shard(path) for path in _shard_paths(folder)}
        self._shard_of = {key: shard for shard in self._shards.values() for key in shard.shapes}
        self.shapes = {key: shape for shard in self._shards.values() for key, shape in shard.shapes.items()}
        if not self.shapes:
            raise CheckpointError(f"the weights in {self.folder} hold no tensors")
        self._keep_what_fits()

    def _keep_what_fits(self) -> None:
        """Choose the shards of a checkpoint larger than memory that stay in the system's cache.

        The float model reads all shards once for each token. The system keeps what was read last. By the end of a token
        it would have dropped the first shards, with which the next token begins, and so nothing would ever be found.
        """
        free, sizes = available_memory(), {path: path.stat().st_size for path in self._shards}
        if free is None or sum(sizes.values()) < FITTING_FRACTION * free:
            return
        kept = 0
        for path, shard in self._shards.items():
            kept += sizes[path]
            shard.is_kept = kept < KEPT_FRACTION * free

    def prefetch(self, key: str) -> None:
        """Ask the system to read a tensor from disk, without waiting. A later ``read`` finds it ready."""
        self._shard_of[key].prefetch(key)

    def dtype(self, key: str) -> torch.dtype:
        """Return the checkpoint's type of a tensor. Raises ``CheckpointError`` if it is not a float type."""
        found = self._shard_of[key].dtypes[key]
        if not isinstance(found, torch.dtype) or found not in FLOAT_DTYPES.values():
            raise CheckpointError(
                f"{key} in {self.folder} is {found}; only float16, bfloat16 and float32 weights can be read, not ones "
                "quantized already"
            )
        return found

    def read(self, key: str) -> Tensor:
        """Return a tensor in the checkpoint's type. Raises ``CheckpointError`` if that is not a float type."""
        self.dtype(key)
        return self._shard_of[key].read(key)


def _open_shard(path: Path) -> Shard | LoadedShard:
    """Open a file of weights. Raises ``CheckpointError`` if it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"shard {path.name} is named by the index but missing in {path.parent}")
    return open_safetensors(path) if path.suffix == ".safetensors" else open_bin(path)


def _shard_paths(folder: Path) -> list[Path]:
    """Return the files of weights in a folder. Raises ``CheckpointError`` if there are none."""
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
    """Return whether a file is a zip archive, which ``torch.save`` writes since torch 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
