"""Reads files that ``torch.save`` wrote. They are pickles, so nothing in them is trusted.

Only tensors are unpickled, so code in a file does not run. torch itself does not check all that a file says: sizes that
exceed it, compressed values, or another byte order would give wrong values or end the process. So the zip archive is
read here first, and every tensor must lie within one of its records.
"""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llava_export.checkpoint.shards import Entry, LoadedShard, Shard
from llava_export.errors import CheckpointError

MAX_PICKLE_BYTES = 4 << 20  # of the part that names the tensors, which has about 200 bytes for each
# A record of a zip archive begins with this header: the lengths of the name and of the extra field are its last values.
LOCAL_HEADER = struct.Struct("<26xHH")

Records = dict[int, int]  # where in the file the values of a storage begin, and how many bytes they have


def open_bin(path: Path) -> Shard | LoadedShard:
    """Open a file that ``torch.save`` wrote. Raises ``CheckpointError`` if it is damaged or holds more than tensors."""
    if not _is_zip(path):
        return LoadedShard(path, _unpickle(path))
    records = _records(path)
    # With fake tensors torch reads no values, but notes where in the file each storage begins.
    with FakeTensorMode():
        tensors = _unpickle(path)
    return Shard(path, {key: _entry(tensor, records, where=f"{key} in {path}") for key, tensor in tensors.items()})


def _records(path: Path) -> Records:
    """Return where the archive's records begin, and their sizes. Raises ``CheckpointError`` for what torch misreads."""
    records = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for record in archive.infolist():
                if record.header_offset < 0:
                    raise zipfile.BadZipFile("a record begins before the file")
                name = record.filename.rpartition("/")[2]
                if record.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path} is compressed; torch.save writes it without compression")
                if name == "data.pkl" and record.file_size > MAX_PICKLE_BYTES:
                    raise CheckpointError(f"{path} holds more than tensors: {record.file_size:,} bytes describe them")
                if name == "byteorder" and archive.read(record).decode("ascii", "replace") != sys.byteorder:
                    raise CheckpointError(f"{path} was saved on a machine of another byte order; save it on this one")
                file.seek(record.header_offset)
                header = file.read(LOCAL_HEADER.size)
                start = record.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(header))
                records[start] = record.file_size
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete; download it again") from error
    return records


def _entry(tensor: Tensor, records: Records, *, where: str) -> Entry:
    """Return where the values of a fake tensor lie. Raises ``CheckpointError`` if that is not within one record."""
    begin = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if begin is None:
        raise CheckpointError(f"{where} has no values in the file")
    entry = Entry(
        tuple(map(int, tensor.shape)),
        tuple(map(int, tensor.stride())),
        tensor.dtype,
        begin + int(tensor.storage_offset()) * tensor.element_size(),
    )
    end = entry.start + entry.num_elements * tensor.element_size()
    if tensor.is_conj() or tensor.is_neg() or entry.start < begin or end > begin + records.get(begin, 0):
        raise CheckpointError(f"{where} does not lie within its record of the file, which is damaged")
    return entry


def _unpickle(path: Path) -> dict[str, Tensor]:
    """Return a ``.bin`` file's tensors by key. Raises ``CheckpointError``."""
    try:
        # Open here, because torch takes no path that is not Unicode.
        with path.open("rb") as file:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors, or is damaged; it was not loaded") from error
    except OSError:
        raise
    except Exception as error:  # what torch raises for damaged files has no common class
        raise CheckpointError(f"{path} is damaged or incomplete; download it again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    ):
        raise CheckpointError(f"{path} is not a dictionary of named tensors")
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise CheckpointError(f"{key} in {path} is not a dense tensor; only those can be read")
        stored = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel() > stored:
            raise CheckpointError(f"{key} in {path} has more values than are stored: it shows some of them repeatedly")
        if tensor.device.type == "meta":
            raise CheckpointError(f"{key} in {path} has no values: it was saved on the meta device")
    return tensors


def _is_zip(path: Path) -> bool:
    """Return whether a file is a zip archive, which ``torch.save`` writes since torch 1.6."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
