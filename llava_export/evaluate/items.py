"""Items of a data set: an image, a question, and the answers that count. They are read from lines of JSON or a list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_export.errors import DatasetError, some
from llava_runner.documents import MAX_LINE, JsonObject, is_number, read_lines, read_object, read_objects

MAX_BYTES = 1 << 30  # of a JSON file: the annotations of VQAv2's training part have 380 MB


@dataclass(frozen=True)
class Item:
    """A question about an image, as it is asked. ``answers`` are those that count; ``kind`` groups items in a table.

    ``image`` is a path from the data set's folder, or "" for a question without an image.
    """

    id: str
    image: str
    question: str
    answers: tuple[str, ...]
    kind: str = ""


def has_lines(path: Path) -> bool:
    """Return whether a file holds an object of JSON in each line, and not one document. POPE's files end in .json."""
    if path.suffix == ".jsonl":
        return True
    with path.open("rb") as file:
        first = file.readline(MAX_LINE)
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and any(isinstance(value.get(name), str) for name in ("question", "text"))


def read_rows(path: Path) -> Iterator[JsonObject]:
    """Yield the objects of a file: one a line, or those of a list. Raises ``DatasetError``."""
    if has_lines(path):
        yield from read_lines(path, error=DatasetError)
    else:
        yield from read_objects(path, error=DatasetError, max_bytes=MAX_BYTES)


def read_document(path: Path) -> JsonObject:
    """Return the object in a JSON file, which may be large. Raises ``DatasetError``."""
    return read_object(path, error=DatasetError, max_bytes=MAX_BYTES)


def text_of(row: JsonObject, name: str) -> str:
    """Return a text, or a number as text. Raises ``DatasetError``."""
    value = row.get(name)
    return row.text(name) if not is_number(value) else str(value)


def answers_of(row: JsonObject, name: str = "answers") -> tuple[str, ...]:
    """Return a list of texts or numbers as texts. Raises ``DatasetError`` if there is none."""
    values = row.items_of(name)
    if not values or not all(isinstance(value, str) or is_number(value) for value in values):
        raise row.wrong(name, "a list of texts")
    return tuple(map(str, values))


def item_of(row: JsonObject, *, id: str) -> Item:
    """Return the item in an object with ``image``, ``question``, and ``answer`` or ``answers``.

    ``id`` is used where it has none of its own. Raises ``DatasetError``.
    """
    if row.get("answers") is None and row.get("answer") is None:
        raise DatasetError(f"{row.where()} lacks answer or answers")
    return Item(
        id=next((text_of(row, name) for name in ("id", "question_id") if row.get(name) is not None), id),
        image=row.text("image"),
        question=row.text("question"),
        answers=answers_of(row) if row.get("answers") is not None else (text_of(row, "answer"),),
        kind=row.text("kind", ""),
    )


def read_items(path: Path) -> list[Item]:
    """Return the items of a file. Those without an id are numbered. Raises ``DatasetError``."""
    return [item_of(row, id=str(number)) for number, row in enumerate(read_rows(path), start=1)]


def check_items(items: Sequence[Item], *, name: str) -> None:
    """Raise ``DatasetError`` for a data set without items, a second item of an id, or a question without answers."""
    if not items:
        raise DatasetError(f"{name} has no items")
    seen: set[str] = set()
    twice = [item.id for item in items if item.id in seen or seen.add(item.id)]  # type: ignore[func-returns-value]
    if twice:
        raise DatasetError(f"{name}: {some(twice, 'id')} twice or more often; an id is for one item")
    empty = [item.id for item in items if not item.question.strip()]
    if empty:
        raise DatasetError(f"{name}: {some(empty, 'question')} empty")
    unanswered = [f"item {item.id}" for item in items if not item.answers]
    if unanswered:
        raise DatasetError(f"{name}: {some(unanswered, 'question')} without answers")


def digest(items: Sequence[Item], *, folder: Path) -> str:
    """Return the SHA-256, as hex digits, of all items and of the sizes of their images."""
    found = hashlib.sha256()
    for item in items:
        fields: list[Any] = [item.id, item.image, item.question, item.answers, item.kind]
        found.update(json.dumps([*fields, _size(folder / item.image) if item.image else 0]).encode())
    return found.hexdigest()


def _size(path: Path) -> int:
    """Return the size of a file in bytes; -1 where there is none."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return -1
