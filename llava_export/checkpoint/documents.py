"""The JSON files of a checkpoint that may be missing."""

from __future__ import annotations

from pathlib import Path

from llava_export.errors import CheckpointError
from llava_runner.documents import JsonObject, read_object


def object_in(path: Path | None) -> JsonObject:
    """Return the JSON object in a file, or an empty one if there is no such file."""
    if path is not None and path.is_file():
        return read_object(path, error=CheckpointError)
    return JsonObject({}, what=str(path), error=CheckpointError)
