"""Data sets in every layout and a file of results, for the fuzzer of Python's parsers."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from llava_export.errors import DatasetError
from llava_export.evaluate.datasets import open_dataset, unreadable
from llava_export.evaluate.items import digest
from llava_export.evaluate.layouts import LAYOUTS, Source
from llava_export.evaluate.records import Record, Result
from llava_export.evaluate.results import MARK, VERSION, read_results
from tests.fuzz.mutations import mutated_document

NAME = "v2_questions.json"  # of the questions of VQAv2; other layouts take any name
BESIDE = ("v2_annotations.json", "pid_splits.json")  # are in the same document
ANSWERS = [{"answer": "net"}] * 10
DOCUMENTS: tuple[Any, ...] = (
    {"image": "a.png", "question": "Why?", "answers": ["x", 2], "id": 7, "kind": "color"},
    [{"image": "a.png", "question": "Why?", "answer": "x"}],
    {
        "data_subtype": "a",
        "questions": [{"image_id": 1, "question": "Where?", "question_id": 3}],
        "annotations": [{"question_id": 3, "answer_type": "other", "answers": ANSWERS}],
    },
    {"data": [{"question_id": 1, "image_id": "a", "question": "What?", "answers": ["net"] * 10}]},
    {"question_id": 1, "image": "a.png", "text": "Is there a cat?", "label": "no"},
    {"20": {"question": "Is it?", "imageId": "a", "answer": "no", "types": {"structural": "verify"}}},
    {"test": ["4"], "4": {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": "a.png"}},
    {"data": [{"questionId": 337, "question": "What?", "image": "a.png", "answers": ["1/8"]}]},
)
SEEDS = [json.dumps(document).encode() + b"\n" for document in DOCUMENTS]
HEADER: dict[str, Any] = {"packages": [{"name": "a"}], "dataset": {"items": 2}, "options": {"metric": "exact"}}
RECORDS = [Record(id, "", "a.png", "Why?", ("x",), (Result("x", 1.0, 3, 2, 1, 0.5, 2),), "y", 0.0) for id in "ab"]
RESULTS = [
    "\n".join([json.dumps({MARK: VERSION, **HEADER}), *(record.to_json() for record in RECORDS), ""]).encode(),
]


def draw(folder: Path) -> None:
    """Write the images that the items have, by the names of each layout."""
    for name in ("a.png", "a.jpg", "COCO_a_000000000001.jpg", "4/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(folder / name)


def read(path: Path) -> None:
    """Read a file as a data set of each layout, and look at its images. Raises ``DatasetError`` if it is of none."""
    for name in BESIDE:
        shutil.copy(path, path.with_name(name))
    taken = 0
    for layout in LAYOUTS:
        try:
            found = open_dataset(Source(path, images=path.parent), layout=layout)
        except DatasetError as error:
            refused = error
            continue
        digest(found.items, folder=found.folder)
        unreadable(found.items, folder=found.folder, on_item=lambda: None)
        for item in found.items:
            for answer in ("", "Yes.", *item.answers):
                found.metric.score(answer, item.answers)
        taken += 1
    if not taken:
        raise refused


def read_records(path: Path) -> None:
    """Read a file of results."""
    read_results(path, HEADER, overwrite=False)


def mutated_line(content: bytes, generator: random.Random) -> bytes:
    """Return lines of JSON, of which one is damaged."""
    lines = content.splitlines(keepends=True)
    at = generator.randrange(len(lines))
    lines[at] = mutated_document(lines[at].strip(), generator) + b"\n" * generator.choice((1, 1, 1, 0))
    return b"".join(lines)
