"""What images are read from: paths, bytes and open files."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from llava_runner.errors import ImageError
from llava_runner.image.formats import HEAD_BYTES, format_of
from llava_runner.image.limits import MAX_FILE_BYTES

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:)/+|data:")
CHUNK_BYTES = 1 << 20


def path_of(source: str | os.PathLike[Any]) -> Path:
    """Return the path of a file. Raises ``ImageError`` for a URL, a folder, and what is not there."""
    try:
        name = os.fsdecode(source)
    except Exception as error:  # of the object's own __fspath__
        raise ImageError(f"the {type(source).__name__} gives no path: {error}") from error
    if not name:
        raise ImageError("the path of the image is empty")
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        if URL.match(name):
            url = URL.sub(r"\1//", name, count=1) if not name.startswith("data:") else name  # a Path has one slash
            raise ImageError(
                f"{url[:100]} is a URL; download the image first, and give the path of its file"
            ) from error
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise ImageError(f"{name} does not exist") from error
        raise ImageError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte
        raise ImageError(f"{name!r} is not a path") from error
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name} is a folder, not an image")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise ImageError(f"{name} is a device, not an image")
    return Path(name)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open an image file. Yields it, and its format. A pipe is read whole. Raises ``ImageError``.

    What is no image is noticed by its first bytes, however large it is.
    """
    try:
        file: BinaryIO = path.open("rb")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            kind = format_of(file.read(HEAD_BYTES), str(path))
            _check_bytes(os.fstat(file.fileno()).st_size, str(path))
            yield file, kind
        else:
            yield whole(file, str(path))


def whole(file: Any, name: str) -> tuple[BinaryIO, str]:
    """Return what an open file has, in memory, and its format. Raises ``ImageError``."""
    try:
        if file.seekable():
            file.seek(0)
    except AttributeError:
        pass  # it has nothing but ``read``
    except Exception as error:
        raise ImageError(f"{name} cannot be read: {error}") from error
    head = _read(file, HEAD_BYTES, name)
    kind = format_of(head, name)
    content = io.BytesIO()
    content.write(head)
    while chunk := _read(file, CHUNK_BYTES, name):
        content.write(chunk)
        _check_bytes(content.tell(), name)
    return content, kind


def _check_bytes(size: int, name: str) -> None:
    """Raise ``ImageError`` for a file of more than ``MAX_FILE_BYTES``."""
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name} is too large: at most {MAX_FILE_BYTES} bytes are read")


def _read(file: Any, count: int, name: str) -> bytes:
    """Return the next ``count`` bytes of an open file, fewer only at its end. Raises ``ImageError``."""
    content = b""
    while len(content) < count:
        try:
            chunk = file.read(count - len(content))
        except MemoryError:
            raise
        except Exception as error:
            raise ImageError(f"{name} cannot be read: {error}") from error
        if not chunk:
            break
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise ImageError(f"{name} gives {type(chunk).__name__}, not bytes; open it in binary mode")
        content += bytes(chunk)
    return content
