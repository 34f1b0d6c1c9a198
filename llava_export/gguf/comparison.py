"""What a comparison of a GGUF file with its checkpoint finds, and how such a file is opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gguf import GGUFReader

from llava_export.errors import ExportError
from llava_export.gguf.bounds import check_head
from llava_runner.documents import shown

Value = TypeVar("Value")


@dataclass(frozen=True)
class KindErrors:
    """The relative errors of a file's tensors of one type, and the largest that is allowed."""

    name: str
    count: int
    mean_error: float
    largest_error: float
    allowed: float


@dataclass
class FileComparison:
    """The result of comparing one file: errors by type in ``kinds``, ``notes`` for the user, and ``failures``."""

    name: str
    kinds: list[KindErrors] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def fail(self, message: str) -> None:
        """Add something that is wrong."""
        self.failures.append(f"{self.name}: {message}")


def open_gguf(path: Path) -> GGUFReader:
    """Open a file. Raises ``ExportError`` if it is not GGUF, or damaged."""
    try:
        check_head(path)
        return GGUFReader(path)
    except OSError:
        raise
    except Exception as error:  # what the library raises for damaged files has no common class
        raise ExportError(f"{path} is no GGUF file, or damaged: {error}") from error


def value(reader: GGUFReader, key: str, kind: type[Value]) -> Value:
    """Return the value of a key. Raises ``ExportError`` if the file does not have it, or as another kind."""
    if key not in reader.fields:
        raise ExportError(f"the GGUF file does not say {key}; name the checkpoint with --model")
    try:
        found = reader.fields[key].contents()
    except Exception as error:
        raise ExportError(f"the GGUF file is damaged: {key} cannot be read") from error
    if not isinstance(found, kind):
        raise ExportError(f"the GGUF file is damaged: {key} is {shown(found)}")
    return found
