"""Data sets as they are published: which files they have, how these name questions, answers and images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from llava_export.errors import DatasetError
from llava_export.evaluate.items import Item, answers_of, read_document, read_items, text_of
from llava_runner.documents import read_lines

# What LLaVA-1.5 appends to a question (haotian-liu/LLaVA, docs/Evaluation.md).
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
POPE = r"(.*_)?pope(_.*)?\.jsonl?"  # names of its files
SPLITS = "pid_splits.json"  # of ScienceQA


@dataclass(frozen=True)
class Source:
    """Where a data set lies: a folder or file. ``images`` is the folder of its images, and ``split`` its part."""

    path: Path
    images: Path | None = None
    split: str = "test"

    @property
    def folder(self) -> Path:
        """The folder of the data set."""
        return self.path if self.path.is_dir() else self.path.parent

    def read_with(self) -> list[Path]:
        """Return the path, and the files that are read with it whatever the layout is, if they are there."""
        if self.path.is_dir():
            return [self.path]
        return [self.path, answers_beside(self.path), self.path.with_name(SPLITS)]

    def file(self, pattern: str) -> Path:
        """Return the file that was given, or the one of the folder that matches. Raises ``DatasetError``."""
        if not self.path.is_dir():
            return self.path
        found = sorted(self.path.glob(pattern))
        if len(found) != 1:
            names = f"{len(found)} files {pattern}: {', '.join(it.name for it in found)}" if found else f"no {pattern}"
            raise DatasetError(f"{self.path} has {names}; name the file itself")
        return found[0]


@dataclass(frozen=True)
class Layout:
    """A published layout. ``suffix`` is appended to each question, and ``metric`` is what it is scored by.

    ``read`` returns the items and the folder that their images' paths start from. It raises ``DatasetError``.
    """

    name: str
    metric: str
    suffix: str
    read: Callable[[Source], tuple[list[Item], Path]]


def read_plain(source: Source) -> tuple[list[Item], Path]:
    """Return the items of a file of this project's own layout: lines or a list of image, question and answers."""
    path = source.file("*.jsonl")
    return read_items(path), source.images or path.parent


def read_vqav2(source: Source) -> tuple[list[Item], Path]:
    """Return the items of VQAv2: a file of questions, and one of ten answers to each. Kinds are its answer types."""
    path = source.file("*questions.json")
    annotations = answers_beside(path)
    if annotations == path or not annotations.is_file():
        raise DatasetError(f"the answers to {path} are missing: {annotations.name} is not beside it")
    document = read_document(path)
    subset = document.text("data_subtype", "val2014")
    answered = {text_of(row, "question_id"): row for row in read_document(annotations).sections("annotations")}
    items = []
    for row in document.sections("questions"):
        id = text_of(row, "question_id")
        if id not in answered:
            raise DatasetError(f"question {id} of {path} has no answers in {annotations.name}")
        answers = tuple(text_of(answer, "answer") for answer in answered[id].sections("answers"))
        image = f"COCO_{subset}_{row.integer('image_id', least=0):012}.jpg"
        items.append(Item(id, image, row.text("question"), answers, kind=answered[id].text("answer_type", "")))
    return items, image_folder(source, items, (subset, f"images/{subset}", "images", "."))


def answers_beside(questions: Path) -> Path:
    """Return where the answers to a file of VQAv2's questions lie, or the file itself if it is named otherwise."""
    return questions.with_name(questions.name.replace("OpenEnded_", "").replace("questions", "annotations"))


def read_textvqa(source: Source) -> tuple[list[Item], Path]:
    """Return the items of TextVQA: a file whose ``data`` has ten answers to each question."""
    items = [
        Item(
            id=text_of(row, "question_id"),
            image=f"{row.text('image_id')}.jpg",
            question=row.text("question"),
            answers=answers_of(row),
        )
        for row in read_document(source.file("TextVQA*.json")).sections("data")
    ]
    return items, image_folder(source, items, ("train_images", "train_val_images/train_images", "images", "."))


def read_pope(source: Source) -> tuple[list[Item], Path]:
    """Return the items of POPE: lines with ``text`` and ``label``. A folder's files are kinds, such as adversarial."""
    is_pope = re.compile(POPE).fullmatch
    files = sorted(it for it in source.path.iterdir() if is_pope(it.name)) if source.path.is_dir() else [source.path]
    if not files:
        raise DatasetError(f"{source.path} has no *_pope_*.json")
    items = []
    for path in files:
        kind = path.stem.rpartition("pope_")[2]
        for row in read_lines(path, error=DatasetError):
            label, number = row.text("label"), text_of(row, "question_id")
            if label not in ("yes", "no"):
                raise row.wrong("label", "yes or no")
            id = f"{kind}/{number}" if len(files) > 1 else number
            items.append(Item(id, row.text("image"), row.text("text"), (label,), kind=kind))
    return items, image_folder(source, items, ("val2014", "images/val2014", "images", ".", "../val2014"))


def read_gqa(source: Source) -> tuple[list[Item], Path]:
    """Return the items of GQA: an object with each question by its id. Kinds are its structural types."""
    document = read_document(source.file("*questions.json"))
    items = []
    for id in document:
        row = document.section(id)
        kind = row.section("types", {}).text("structural", "")
        items.append(Item(id, f"{text_of(row, 'imageId')}.jpg", row.text("question"), (row.text("answer"),), kind=kind))
    return items, image_folder(source, items, ("images", "."))


def read_scienceqa(source: Source) -> tuple[list[Item], Path]:
    """Return the items of a split of ScienceQA: context, question and lettered choices, as LLaVA asks.

    Half of its questions have no image.
    """
    path = source.file("problems.json")
    ids = read_document(path.with_name(SPLITS)).items_of(source.split)
    problems = read_document(path)
    items = []
    for id in map(str, ids):
        row = problems.section(id)
        choices = answers_of(row, "choices")
        letter = ascii_uppercase[row.integer("answer", least=0, most=min(len(choices), len(ascii_uppercase)) - 1)]
        hint = row.text("hint", "").strip()
        lines = [f"Context: {hint}"] if hint else []
        lines += [row.text("question"), *map("{}. {}".format, ascii_uppercase, choices)]
        image = row.text("image", "")
        kind = "with an image" if image else "text alone"
        items.append(Item(id, f"{id}/{image}" if image else "", "\n".join(lines), (letter,), kind=kind))
    with_images = [item for item in items if item.image]
    part = re.sub("^mini", "", source.split)
    return items, image_folder(source, with_images, (part, f"images/{part}", "images", "."))


def read_docvqa(source: Source) -> tuple[list[Item], Path]:
    """Return the items of DocVQA: a file whose ``data`` has the image's path and the answers to each question."""
    items = [
        Item(text_of(row, "questionId"), row.text("image"), row.text("question"), answers_of(row))
        for row in read_document(source.file("*_v1.0*.json")).sections("data")
    ]
    return items, image_folder(source, items, (".", "images"))


def image_folder(source: Source, items: Sequence[Item], places: Iterable[str]) -> Path:
    """Return the first folder among ``places`` that has an image of the items, or the one that the user named.

    Raises ``DatasetError`` where no folder has one of the first hundred.
    """
    if not items:
        return source.folder
    folders = [source.images] if source.images else [source.folder / place for place in places]
    for folder in folders:
        if any(os.path.isfile(folder / item.image) for item in items[:100]):
            return folder
    looked = ", ".join(map(str, folders))
    remedy = "" if source.images else "; --images says where they are"
    raise DatasetError(f"no image of the data set is there: {items[0].image} is not in {looked}{remedy}")


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("items", "exact", "", read_plain),
        Layout("vqav2", "vqa", SHORT_ANSWER, read_vqav2),
        Layout("textvqa", "vqa", SHORT_ANSWER, read_textvqa),
        Layout("pope", "yes-no", SHORT_ANSWER, read_pope),
        Layout("gqa", "caseless", SHORT_ANSWER, read_gqa),
        Layout("scienceqa", "letter", LETTER, read_scienceqa),
        Layout("docvqa", "anls", SHORT_ANSWER, read_docvqa),
    )
}

# The files by which a layout is known, in this order: names, and fields of the first object in a file.
FILES = (
    ("scienceqa", r"problems\.json"),
    ("vqav2", r"(.*_)?questions\.json"),  # or GQA
    ("pope", POPE),
    ("textvqa", r"TextVQA.*\.json"),
    ("docvqa", r"(train|val|test)_v1\.0.*\.json"),
)


def layout_of(path: Path) -> Layout:
    """Return the layout of a data set, by the names of its files and what is in them. Raises ``DatasetError``."""
    names = [file.name for file in path.iterdir()] if path.is_dir() else [path.name]
    for name, pattern in FILES:
        for file in filter(re.compile(pattern).fullmatch, names):
            if name != "vqav2" or _is_vqav2(path / file if path.is_dir() else path):
                return LAYOUTS[name]
            return LAYOUTS["gqa"]
    if path.is_dir() and not any(name.endswith(".jsonl") for name in names):
        raise DatasetError(
            f"{path} has no .jsonl with items, and none of the files of {', '.join(LAYOUTS)}; name the file itself, "
            "or --layout"
        )
    return LAYOUTS["items"]


def _is_vqav2(path: Path) -> bool:
    """Return whether a file of questions is of VQAv2 and not of GQA, by its name or the answers beside it."""
    others = path.parent.glob("*annotations.json")
    return "OpenEnded" in path.name or any(others)
