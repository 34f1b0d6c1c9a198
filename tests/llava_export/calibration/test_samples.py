"""Samples to calibrate with: what a folder or file has, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.calibration.samples import IMAGES, PART_OF_TEXT, QUESTION, Sample, open_samples, spread
from llava_export.errors import CalibrationError, CorpusError
from llava_runner.image import load_image


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_what_ships_has_images_conversations_and_prose():
    samples = open_samples(None)
    scenes = [sample for sample in samples if sample.image]
    prose = [sample for sample in samples if not sample.question]
    assert len(scenes) == 24 and len(prose) > 8 and len(samples) - len(scenes) - len(prose) > 30
    assert all(sample.answer for sample in samples)
    for sample in scenes:
        assert sample.image and isinstance(load_image(sample.image), Image.Image)
    words = sum(len(f"{sample.question} {sample.answer}".split()) for sample in samples)
    assert 4000 < words < 7000
    assert sum(sample.image.stat().st_size for sample in scenes if sample.image) < 200_000


def test_lines_have_questions_with_images_and_answers_or_without(tmp_path):
    (tmp_path / "a.png").write_bytes(SAMPLE_IMAGE.read_bytes())
    path = write_lines(
        tmp_path / "x.jsonl",
        {"image": "a.png", "question": "What?", "answer": "A circle.", "id": 7},
        "",
        {"image": "a.png", "question": "Where?", "answers": ["left", "right", "right"]},
        {"question": "Who?"},
        {"image": None, "question": "How?", "answer": None},
    )
    image = tmp_path / "a.png"
    expected = [
        Sample(image, "What?", "A circle.", f"line 1 of {path}"),
        Sample(image, "Where?", "right", f"line 3 of {path}"),
        Sample(None, "Who?", "", f"line 4 of {path}"),
        Sample(None, "How?", "", f"line 5 of {path}"),
    ]
    assert open_samples(path) == expected
    assert open_samples(tmp_path) == expected  # a folder is what its .jsonl says


def test_images_alone_are_asked_what_is_in_them(tmp_path):
    for name in ("b.JPG", "a.png", "notes.md"):
        (tmp_path / name).write_bytes(SAMPLE_IMAGE.read_bytes())
    (tmp_path / "folder.png").mkdir()
    found = open_samples(tmp_path)
    assert [(sample.image, sample.question, sample.answer) for sample in found] == [
        (tmp_path / "a.png", QUESTION, ""),
        (tmp_path / "b.JPG", QUESTION, ""),
    ]
    assert all(suffix == suffix.lower() for suffix in IMAGES)


def test_a_text_is_cut_where_a_line_or_word_ends_and_nothing_is_lost(tmp_path):
    text = ("word " * 50 + "\n") * 30 + "\n \n" + "x" * (PART_OF_TEXT + 5)
    (tmp_path / "x.txt").write_text(text)
    found = open_samples(tmp_path / "x.txt")
    assert "".join(sample.answer for sample in found) == text
    assert all(len(sample.answer) <= PART_OF_TEXT and not sample.question for sample in found)
    assert all(sample.answer.endswith("\n") for sample in found[:3])


def test_token_ids_are_cut_too(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(1200))
    found = open_samples(tmp_path / "x.npy")
    ids = [number for sample in found if sample.ids is not None for number in sample.ids.tolist()]
    assert ids == list(range(1200)) and len(found) == 3


def test_items_are_spread_evenly():
    assert spread(list(range(10)), 3) == [0, 3, 6]
    assert spread([1, 2], 5) == spread([1, 2], None) == [1, 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        (["  "], "is empty"),
        (["{"], "line 1 of .* is not JSON"),
        ([{"question": "a"}, "[1]"], "line 2 of .* does not hold a JSON object"),
        ([b"\xff\xfe{".decode("latin-1")], "line 1 of .* is not JSON"),
        ([{"answer": "a"}], "line 1 of .* lacks question"),
        ([{"question": " \n"}], "question in line 1 of .* must be a text that is not empty"),
        ([{"question": 7}], "question in line 1 of .* is 7; it must be a text"),
        ([{"question": "a", "image": 7}], "image in line 1 of .* is 7"),
        ([{"question": "a", "answer": ["b"]}], "answer in line 1 of .* must be a text"),
        ([{"question": "a", "answers": []}], "answers in line 1 of .* must be a list of texts"),
        ([{"question": "a", "answers": [1]}], "answers in line 1 of .* must be a list of texts"),
        ([json.dumps({"question": "a" * (1 << 20)})], "has more than the 1,048,576 bytes"),
        ([{"question": "a", "image": "no.png"}, {"question": "b", "image": "."}], r"2 images \(.*no.png, .*\) are not"),
        ([{"question": "a", "image": "a\0b.png"}], "1 image .* is not there"),
        ([{"question": "a", "image": "x" * 5000}], "1 image .* is not there"),
    ],
)
def test_wrong_lines_are_refused(rows, message, tmp_path):
    with pytest.raises(CalibrationError, match=message):
        open_samples(write_lines(tmp_path / "x.jsonl", *rows))


def test_other_sources_are_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write_lines(two / name, {"question": "a"})
    (tmp_path / "blank.txt").write_text(" \n\n ")
    (tmp_path / "latin.txt").write_bytes(b"Gr\xfc\xdfe")
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "none.npy", np.arange(0))
    for name, message in {
        "no.jsonl": "does not exist",
        "no.txt": "does not exist",
        "no": "does not exist",
        "empty": "has no images, and no .jsonl",
        "two": "has 2 files .jsonl: a.jsonl, b.jsonl",
        "blank.txt": "is empty",
        "latin.txt": "is not UTF-8 text at byte 2",
        "damaged.npy": "no array of numbers",
        "none.npy": "is empty",
        "empty/../test.pdf": "does not exist",
    }.items():
        with pytest.raises((CalibrationError, CorpusError), match=message):
            open_samples(tmp_path / name)
    (tmp_path / "test.pdf").write_bytes(b"%PDF")
    with pytest.raises(CalibrationError, match=r"neither a folder nor a file .jsonl, .txt or .npy"):
        open_samples(tmp_path / "test.pdf")
