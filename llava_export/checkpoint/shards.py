"""The files of a checkpoint's weights, opened: tensors are read from them by key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from llava_export.errors import CheckpointError

CHUNK_BYTES = 1 << 20  # of what is read to be compared


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

    def rows(self, first: int, count: int) -> Entry:
        """Return the entry of some rows of the tensor."""
        itemsize = self.dtype.itemsize if isinstance(self.dtype, torch.dtype) else 0  # of a type that cannot be read
        return replace(self, shape=(count, *self.shape[1:]), start=self.start + first * self.stride[0] * itemsize)


class Shard:
    """A file whose tensors are read one at a time.

    ``shapes`` and ``dtypes`` are by key. With ``is_kept`` the system may keep in its cache what was read. The file is
    read and not mapped: with a map, every page costs a page fault each time it is read.
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self.shapes = {key: entry.shape for key, entry in entries.items()}
        self.dtypes = {key: entry.dtype for key, entry in entries.items()}
        self.is_kept = True
        self.path = path
        self._entries = entries
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (open as long as the shard is)

    def rename(self, keys: Mapping[str, str]) -> None:
        """Give the tensors other keys, which ``keys`` has by their own. Those that it does not have are forgotten."""
        self._entries = {new: self._entries[key] for key, new in keys.items()}
        self.shapes = {new: self.shapes[key] for key, new in keys.items()}
        self.dtypes = {new: self.dtypes[key] for key, new in keys.items()}

    def divide(self, key: str, parts: Mapping[str, int]) -> None:
        """Show a tensor as its rows, divided. ``parts`` has their numbers by the keys that they get, in order."""
        whole, first, entries = self._entries[key], 0, dict(self._entries)
        for part, count in parts.items():
            entries[part] = entry = whole.rows(first, count)
            self.shapes[part], self.dtypes[part] = entry.shape, entry.dtype
            first += count
        del entries[key], self.shapes[key], self.dtypes[key]
        self._entries = entries

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
                raise CheckpointError(f"{self.path} is shorter than it says it is; download it again")
            unread = unread[count:]
        if not self.is_kept:
            self._advise(key, "POSIX_FADV_DONTNEED")
        return elements.as_strided(entry.shape, entry.stride)

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor's values in parts, after those of its strides."""
        entry = self._entries[key]
        yield repr(entry.stride).encode()
        size = entry.num_elements * entry.dtype.itemsize  # type: ignore[union-attr]  # checked by the reader
        for begin in range(0, size, CHUNK_BYTES):
            self._file.seek(entry.start + begin)
            yield self._file.read(min(CHUNK_BYTES, size - begin))

    def _advise(self, key: str, advice: str) -> None:
        """Advise the system how a tensor's bytes will be used. Systems other than Linux take no advice."""
        if hasattr(os, "posix_fadvise"):
            entry = self._entries[key]
            length = entry.num_elements * entry.dtype.itemsize  # type: ignore[union-attr]
            os.posix_fadvise(self._file.fileno(), entry.start, length, getattr(os, advice))


class LoadedShard:
    """A ``.bin`` file of torch before 1.6, which can only be read as a whole. It has the members of ``Shard``."""

    is_kept = True

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self._tensors = tensors
        self.shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        self.dtypes = {key: tensor.dtype for key, tensor in tensors.items()}

    def rename(self, keys: Mapping[str, str]) -> None:
        """Give the tensors other keys, which ``keys`` has by their own. Those that it does not have are forgotten."""
        self._tensors = {new: self._tensors[key] for key, new in keys.items()}
        self.shapes = {new: self.shapes[key] for key, new in keys.items()}
        self.dtypes = {new: self.dtypes[key] for key, new in keys.items()}

    def divide(self, key: str, parts: Mapping[str, int]) -> None:
        """Show a tensor as its rows, divided. ``parts`` has their numbers by the keys that they get, in order."""
        whole = self._tensors[key]
        divided = dict(zip(parts, whole.split(list(parts.values())), strict=True))
        self._tensors = {**{name: it for name, it in self._tensors.items() if name != key}, **divided}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def prefetch(self, key: str) -> None:
        """Do nothing: the tensor is in memory."""

    def read(self, key: str) -> Tensor:
        """Return a tensor in its own type."""
        return self._tensors[key]

    def chunks(self, key: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor's values, as one part."""
        yield self._tensors[key].contiguous().flatten().view(torch.uint8).numpy().tobytes()
