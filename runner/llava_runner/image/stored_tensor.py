"""The image tensor in a file of ``torch.save``, read without running what the file says.

``torch.save`` writes a zip archive without compression. ``FOLDER/data.pkl`` is a pickle with the tensor's shape and
strides, and ``FOLDER/data/0`` has its bytes. ``torch.load`` runs the pickle, takes its numbers for true, and reads
memory that is not the file's where they are not. An image tensor's pickle always has the same opcodes, so they are
compared with those, and every number is checked. The C++ runner decides by the same rules (``stored_files.cpp`` and
``tensor_file.cpp``).
"""

from __future__ import annotations

import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np

from llava_runner.contract import MAX_IMAGE_SIDE
from llava_runner.errors import ImageError

ARCHIVE_AT_MOST = 256 << 20  # bytes; of a slice torch.save writes the whole tensor
PICKLE_AT_MOST = 4 << 10  # bytes; that of a tensor has less than 300

# A zip archive (APPNOTE.TXT of PKWARE, version 6.3): what stands before a file's content, an entry of the directory,
# the same numbers with 64 bits and where those begin, and the end. What nothing is read from is skipped.
LOCAL = struct.Struct("<4s22xHH")
ENTRY = struct.Struct("<4s4xHH8xIIHHH8xI")
END_64 = struct.Struct("<4s20xQQQQ4s4xQ4x")
END = struct.Struct("<8sHHIIH")
HARMLESS_FLAGS = 0x0808  # sizes behind the content, too; names in UTF-8

# _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad=False, hooks=OrderedDict()), in which storage is
# ("storage", torch.ByteStorage, key, device, size). None stands for any argument.
PICKLE: tuple[tuple[str, object], ...] = (
    ("PROTO", None),
    ("GLOBAL", "torch._utils _rebuild_tensor_v2"),
    ("MARK", None),
    ("MARK", None),
    ("BINUNICODE", "storage"),
    ("GLOBAL", "torch ByteStorage"),
    ("BINUNICODE", None),
    ("BINUNICODE", None),
    ("INTEGER", None),
    ("TUPLE", None),
    ("BINPERSID", None),
    ("INTEGER", None),
    *((("INTEGER", None),) * 3 + (("TUPLE3", None),)) * 2,
    ("NEWFALSE", None),
    ("GLOBAL", "collections OrderedDict"),
    ("EMPTY_TUPLE", None),
    ("REDUCE", None),
    ("TUPLE", None),
    ("REDUCE", None),
    ("STOP", None),
)
INTEGERS = ("BININT", "BININT1", "BININT2")
MEMORY = ("BINPUT", "LONG_BINPUT")  # they store a value for later, and an image tensor's pickle never comes back to it


def read_stored_tensor(path: Path) -> np.ndarray:
    """Return the tensor ``uint8 [3, H, W]`` in a ``.pt`` file, its sides at most ``MAX_IMAGE_SIDE``.

    Raises ``ImageError`` for any other file.
    """
    if not path.is_file():
        raise ImageError(f"{path} is not a file")
    if (size := path.stat().st_size) > ARCHIVE_AT_MOST:
        raise ImageError(f"{path} is too large: {size} bytes; at most {ARCHIVE_AT_MOST} are read")
    try:
        return _tensor_in(_stored_files(path.read_bytes()))
    except _TooLarge as error:
        raise ImageError(f"{path}: {error}") from error
    except Exception as error:  # of struct, pickletools or here: the file is another one
        raise ImageError(f"{path} is not an image tensor written by torch.save (uint8 [3, H, W])") from error


class _TooLarge(Exception):
    """The tensor has more pixels than a model sees."""


def _require(condition: bool) -> None:
    """Raise ``ValueError`` unless the condition holds."""
    if not condition:
        raise ValueError


def _stored_files(archive: bytes) -> dict[bytes, memoryview]:
    """Return the content of each file by its name within the archive's one folder. Raises ``ValueError``.

    Readers of zip archives disagree on what is odd: bytes before or after the archive, a comment, two files of one
    name, or two directories that differ. Here all of that is refused, and so is what is compressed or encrypted. So no
    file has more bytes than the archive.
    """
    _require(archive.startswith(b"PK\3\4") and len(archive) >= END.size)
    end = len(archive) - END.size
    mark, count_here, count, size, offset, comment = END.unpack_from(archive, end)
    _require(mark == b"PK\5\6\0\0\0\0" and count_here == count and comment == 0)
    directory_end = offset + size
    if directory_end != end:  # torch.save writes the same again with 64 bits
        _require(directory_end + END_64.size == end)
        wide = END_64.unpack_from(archive, directory_end)
        _require(wide == (b"PK\6\6", count, count, size, offset, b"PK\6\7", directory_end))
    files: dict[bytes, memoryview] = {}  # views, since entries may share bytes
    folder, at = None, offset
    for _ in range(count):
        mark, flags, method, compressed, size, name_length, extra, comment, local = ENTRY.unpack_from(archive, at)
        name = archive[at + ENTRY.size : at + ENTRY.size + name_length]
        at += ENTRY.size + name_length + extra + comment
        _require(mark == b"PK\1\2" and flags & ~HARMLESS_FLAGS == 0 and method == 0 and compressed == size)
        mark, local_length, local_extra = LOCAL.unpack_from(archive, local)
        begin = local + LOCAL.size + local_length + local_extra
        _require(
            mark == b"PK\3\4"
            and local_length == name_length
            and archive[local + LOCAL.size : local + LOCAL.size + local_length] == name
        )
        _require(at <= directory_end and local + LOCAL.size <= offset and begin + size <= offset)
        own_folder, slash, rest = name.partition(b"/")
        folder = own_folder if folder is None else folder
        _require(bool(slash) and own_folder == folder and rest not in files)
        files[rest] = memoryview(archive)[begin : begin + size]
    _require(at == directory_end)
    return files


def _tensor_in(files: dict[bytes, memoryview]) -> np.ndarray:
    """Return the tensor that the files of an archive hold. Raises ``ValueError``, or ``_TooLarge``."""
    pickle = files[b"data.pkl"]
    _require(len(pickle) <= PICKLE_AT_MOST)
    found: list[tuple[str, Any]] = [
        (opcode.name, value) for opcode, value, _ in pickletools.genops(bytes(pickle)) if opcode.name not in MEMORY
    ]
    _require(len(found) == len(PICKLE))
    for (name, value), (expected_name, expected_value) in zip(found, PICKLE, strict=True):
        _require(expected_name == ("INTEGER" if name in INTEGERS else name))
        _require(expected_value in (None, value))
    texts = [value for name, value in found if name == "BINUNICODE"]
    _require(all(" " <= character <= "~" for text in texts for character in text))
    numbers = [value for name, value in found if name in INTEGERS]
    _require(found[0][1] in (2, 3) and min(numbers) >= 0)
    size, offset, channels, height, width, *strides = numbers
    storage = files[b"data/" + texts[1].encode()]
    last = offset + (channels - 1) * strides[0] + (height - 1) * strides[1] + (width - 1) * strides[2]
    _require(len(storage) == size and channels == 3 and min(height, width) >= 1 and last < size)
    if max(height, width) > MAX_IMAGE_SIDE:
        raise _TooLarge(
            f"the image tensor has {width}x{height} pixels and no model sees more than {MAX_IMAGE_SIDE}x"
            f"{MAX_IMAGE_SIDE}; give the image itself, or a tensor resized to fit"
        )
    values = np.frombuffer(storage, dtype=np.uint8, offset=offset)
    return np.lib.stride_tricks.as_strided(values, (3, height, width), tuple(strides)).copy()
