"""Samples to calibrate with: images with questions and answers, conversations without an image, and texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from llava_export.builtin import CALIBRATION
from llava_export.corpus import ARRAY, CORPUS_AT_MOST, parts_of, read_ids, read_text
from llava_export.errors import CalibrationError, some
from llava_runner.documents import JsonObject, read_lines

Item = TypeVar("Item")

LINES, TEXT = ".jsonl", ".txt"
IMAGES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
QUESTION = "What is in the image?"  # about images that come without one
PART_OF_TEXT = 2000  # characters of a sample: about 500 tokens of English
PART_OF_IDS = 512


@dataclass(frozen=True)
class Sample:
    """What a model reads in one piece. ``name`` says in messages where it is from.

    It is a conversation of one turn if it has a ``question``; without an ``answer`` it ends where one begins. Otherwise
    it is a text, the ``answer``, or its token ``ids``, int64 ``[T]``.
    """

    image: Path | None
    question: str
    answer: str
    name: str = "a sample"
    ids: Tensor | None = field(default=None, compare=False)


def open_samples(source: Path | None) -> list[Sample]:
    """Return the samples of a folder or file, or those that ship with the project.

    A folder has a ``.jsonl``, or images alone, which are asked what is in them. A ``.jsonl`` has lines with
    ``question``, ``image`` (a path from its folder) and ``answer`` or ``answers``, of which only ``question`` must be
    there. A ``.txt`` is text in UTF-8, and an ``.npy`` has token ids. Raises ``CalibrationError`` and ``CorpusError``.
    """
    if source is None:
        return [sample for path in CALIBRATION for sample in open_samples(path)]
    if source.is_dir():
        samples = _read_folder(source)
    elif source.suffix == LINES:
        samples = list(_read_lines(source))
    elif source.suffix == TEXT:
        parts = parts_of(read_text(source), length=PART_OF_TEXT)
        samples = [Sample(None, "", part, name=f"a part of {source}") for part in parts if part.strip()]
    elif source.suffix == ARRAY:
        parts_of_ids = read_ids(source).split(PART_OF_IDS)
        samples = [Sample(None, "", "", name=str(source), ids=ids) for ids in parts_of_ids if len(ids)]
    elif not source.exists():
        raise CalibrationError(f"{source} does not exist")
    else:
        raise CalibrationError(f"{source} is neither a folder nor a file {LINES}, {TEXT} or {ARRAY}")
    if not samples:
        raise CalibrationError(f"{source} is empty: there is nothing to calibrate with")
    if missing := list(dict.fromkeys(str(it.image) for it in samples if it.image and not _is_file(it.image))):
        raise CalibrationError(f"{source}: {some(missing, 'image')} not there")
    return samples


def spread(items: list[Item], limit: int | None) -> list[Item]:
    """Return at most ``limit`` of the items, evenly spread."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _is_file(path: Path) -> bool:
    """Return whether there is a file. A name in a data set may be one that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _read_folder(folder: Path) -> list[Sample]:
    """Return the samples of a folder: those of its ``.jsonl``, or a question about each of its images."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    lines = [path for path in paths if path.suffix == LINES]
    if len(lines) > 1:
        names = ", ".join(path.name for path in lines)
        raise CalibrationError(f"{folder} has {len(lines)} files {LINES}: {names}; name the file itself")
    if lines:
        return list(_read_lines(lines[0]))
    images = [path for path in paths if path.suffix.lower() in IMAGES]
    if not images:
        raise CalibrationError(f"{folder} has no images, and no {LINES} that names any")
    return [Sample(path, QUESTION, "", name=str(path)) for path in images]


def _read_lines(path: Path) -> Iterator[Sample]:
    """Yield the sample in each line of JSON. Raises ``CalibrationError``, which names the line."""
    if not path.is_file():
        raise CalibrationError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    if path.stat().st_size > CORPUS_AT_MOST:
        raise CalibrationError(f"{path} is too large: at most {CORPUS_AT_MOST >> 30} GiB are read")
    for row in read_lines(path, error=CalibrationError):
        yield _sample(row, folder=path.parent)


def _sample(row: JsonObject, *, folder: Path) -> Sample:
    """Return the sample in an object, whose image is a path from a folder."""
    image, question, answer = row.text("image", ""), row.text("question"), row.text("answer", "")
    if not question.strip():
        raise row.wrong("question", "a text that is not empty")
    if row.get("answers") is not None:
        answers = row.items_of("answers")
        if not answers or not all(isinstance(it, str) for it in answers):
            raise row.wrong("answers", "a list of texts")
        answer = answer or Counter(answers).most_common(1)[0][0]
    return Sample(folder / image if image else None, question, answer, name=row.where())
