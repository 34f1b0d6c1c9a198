"""Reads a checkpoint's shards one tensor at a time. To open a checkpoint takes no memory."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_export.checkpoint.shards import Entry, LoadedShard, Shard
from llava_export.checkpoint.torch_files import open_bin
from llava_export.checkpoint.weight_files import find_weight_files
from llava_export.errors import CheckpointError
from llava_export.system import available_memory
from llava_runner.documents import MAX_BYTES, parse_object

# Checkpoints smaller than this fraction of the free memory stay in the system's file cache as a whole.
FITTING_FRACTION = 0.8
# Of a larger checkpoint, shards of up to this fraction of the free memory stay there.
KEPT_FRACTION = 0.6
HEADER_LENGTH = struct.Struct("<Q")
# The types that can be read, by safetensors' names.
FLOAT_DTYPES: dict[str, torch.dtype] = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def open_safetensors(path: Path) -> Shard:
    """Open a ``.safetensors`` file. Raises ``CheckpointError`` if it is damaged."""
    try:
        with path.open("rb") as file:
            # The file begins with the length of a JSON header, and the header. Then come the tensors' bytes. The header
            # has their offsets, counted from its own end.
            (length,) = HEADER_LENGTH.unpack(file.read(HEADER_LENGTH.size))
            if length > MAX_BYTES:
                raise CheckpointError(f"{path} is damaged: its header says that it has {length:,} bytes")
            text = file.read(length)
            is_unicode = str(path) == str(path).encode("utf-8", "replace").decode()  # the library takes no other name
            name = path if is_unicode else f"/dev/fd/{file.fileno()}"
            with safe_open(name, framework="pt") as checked:  # compares offsets, shapes and the file's size
                shapes = {key: tuple(checked.get_slice(key).get_shape()) for key in checked.keys()}  # noqa: SIM118
    except (SafetensorError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again") from error
    header = parse_object(text, what=f"the header of {path}", error=CheckpointError)
    entries = {}
    for key, shape in shapes.items():
        tensor = header.section(key)
        dtype, (begin, _) = tensor.text("dtype"), tensor.integers("data_offsets", least=0)
        start = HEADER_LENGTH.size + length + begin
        entries[key] = Entry(shape, _contiguous(shape), FLOAT_DTYPES.get(dtype, dtype), start)
    return Shard(path, entries)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor whose elements lie in order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


class CheckpointReader:
    """All tensors of a checkpoint by key.

    ``shapes`` are known without reading any tensor. ``lacking`` are tensors that an index names and the file that it
    names for them lacks: the file's name by key. ``notes`` are sentences for the user about files that are not read.
    """

    def __init__(self, folder: Path) -> None:
        """Open the shards in ``folder``. Raises ``CheckpointError`` if there are none, or some are damaged."""
        self.folder = folder
        self.notes: tuple[str, ...] = ()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.lacking: dict[str, str] = {}
        self._shards: dict[Path, Shard | LoadedShard] = {}
        self._shard_of: dict[str, Shard | LoadedShard] = {}
        self.add(folder)

    def add(self, folder: Path, *, in_place_of: Collection[str] = ()) -> None:
        """Add the tensors of another checkpoint, for example of the vision tower.

        Those ``in_place_of`` which they come are no longer there. Raises ``CheckpointError``.
        """
        for key in in_place_of:
            del self.shapes[key], self._shard_of[key]
        found = find_weight_files(folder)
        file_of = {key: path for path, shard in self._shards.items() for key in shard.shapes if key in self.shapes}
        for path in found.paths:
            if path in self._shards:  # a checkpoint may be named as its own vision tower
                continue
            self._shards[path] = shard = open_shard(path)
            if both := file_of.keys() & shard.shapes.keys():
                key = min(both)
                raise CheckpointError(f"{key} is both in {file_of[key]} and in {path}; a tensor can have one value")
            file_of |= dict.fromkeys(shard.shapes, path)
            self._shard_of |= dict.fromkeys(shard.shapes, shard)
            self.shapes |= shard.shapes
        self.lacking |= {
            key: name for key, name in found.file_of.items() if key not in self._shards[folder / name].shapes
        }
        self.notes += found.notes
        if not self.shapes:
            raise CheckpointError(f"the weights in {self.folder} hold no tensors")
        self._keep_what_fits()

    def replace(self, path: Path, keys: Mapping[str, str]) -> None:
        """Read tensors from another file in place of those that have their keys, or in addition.

        ``keys`` has their keys here by those in the file. Raises ``CheckpointError``.
        """
        shard = open_shard(path)
        shard.rename(keys)
        self._shard_of |= dict.fromkeys(keys.values(), shard)
        self.shapes |= shard.shapes

    def divide(self, key: str, parts: Mapping[str, int]) -> None:
        """Show a tensor as its rows, divided. ``parts`` has their numbers by the keys that they get, in order."""
        shard = self._shard_of.pop(key)
        del self.shapes[key]
        shard.divide(key, parts)
        self._shard_of |= dict.fromkeys(parts, shard)
        self.shapes |= {part: shard.shapes[part] for part in parts}

    def file_of(self, key: str) -> Path:
        """Return the file that a tensor is read from."""
        return self._shard_of[key].path

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

    def stored_dtype(self, key: str) -> torch.dtype | str:
        """Return the checkpoint's type of a tensor: the format's own name where torch has none."""
        return self._shard_of[key].dtypes[key]

    def dtype(self, key: str) -> torch.dtype:
        """Return the checkpoint's type of a tensor. Raises ``CheckpointError`` if it is not a float type."""
        found = self.stored_dtype(key)
        if not isinstance(found, torch.dtype) or found not in FLOAT_DTYPES.values():
            raise CheckpointError(
                f"{key} in {self.file_of(key).parent} is {found}; only float16, bfloat16 and float32 weights can be "
                "read, not ones quantized already"
            )
        return found

    def read(self, key: str) -> Tensor:
        """Return a tensor in the checkpoint's type. Raises ``CheckpointError`` if that is not a float type."""
        self.dtype(key)
        return self._shard_of[key].read(key)

    def is_same(self, key: str, other: str) -> bool:
        """Return whether two tensors have the same type, shape and values. It takes no memory to speak of."""
        if self.shapes[key] != self.shapes[other] or self.dtype(key) != self.dtype(other):
            return False
        chunks = zip_longest(self._shard_of[key].chunks(key), self._shard_of[other].chunks(other))
        return all(one == two for one, two in chunks)


def open_shard(path: Path) -> Shard | LoadedShard:
    """Open a file of weights. Raises ``CheckpointError`` if it is damaged."""
    return open_safetensors(path) if path.suffix == ".safetensors" else open_bin(path)
