"""The file of results: an evaluation that was killed goes on with it, and that of another evaluation is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_export.errors import DatasetError
from llava_export.evaluate.records import Record, Result
from llava_export.evaluate.results import read_results, results_file

HEADER: dict[str, Any] = {
    "packages": [{"name": "a.pte", "sha256": "12"}],
    "dataset": {"name": "d", "layout": "items", "items": 3, "sha256": "34"},
    "options": {"metric": "exact", "max_new_tokens": 64},
}
RECORDS = [
    Record("1", "color", "a.png", "Why?\n", ("é", "\ud800"), (Result("Red.", 1.0, 3, 2, 1, 0.25, None),), "Blue.", 0.0),
    Record("2", "", "", "Who?", ("x",), (Result("", 0.0, 1),)),
    Record("3", "", "b.png", "How?", ("x",), (Result("x", 0.5, 9, 9, 8, 1.5, 4),)),
]


def write(path: Path, *records: Record, overwrite: bool = False) -> None:
    with results_file(path, HEADER, overwrite=overwrite) as file:
        assert file is not None
        for record in records:
            file.add(record)


def read(path: Path, *, overwrite: bool = False, **changes: Any) -> dict[str, Record]:
    return read_results(path, {**HEADER, **changes}, overwrite=overwrite)


def test_records_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "results.jsonl"
    assert read(path) == {}
    write(path, *RECORDS[:2])
    write(path, RECORDS[2])
    assert list(read(path).values()) == RECORDS
    assert [line["id"] for line in map(json.loads, path.read_text().splitlines()[1:])] == ["1", "2", "3"]
    assert [file.name for file in tmp_path.iterdir()] == ["results.jsonl"]


def test_each_record_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "results.jsonl"
    with results_file(path, HEADER, overwrite=False) as file:
        assert file is not None
        for count, record in enumerate(RECORDS, start=1):
            file.add(record)
            assert len(read(path)) == count


@pytest.mark.parametrize("left", [1, 40, 300])
def test_a_line_that_was_cut_short_is_asked_again(left, tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, *RECORDS)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: len(whole) - len(last) + min(left, len(last) - 1)])
    assert list(read(path).values()) == RECORDS[:2]
    write(path, RECORDS[2])
    assert path.read_bytes() == whole


def test_results_of_something_else_are_refused_and_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, *RECORDS)
    before = path.read_bytes()
    for part, message in (
        ({"packages": [{"name": "a.pte", "sha256": "13"}]}, "has the results of another package"),
        ({"packages": [*HEADER["packages"], *HEADER["packages"]]}, "has the results of another package"),
        ({"dataset": {**HEADER["dataset"], "sha256": "35"}}, "of another data set, or of one that has changed"),
        ({"options": {**HEADER["options"], "max_new_tokens": 1}}, "of other options"),
    ):
        with pytest.raises(DatasetError, match=message):
            read(path, **part)
        assert read(path, overwrite=True, **part) == {}
    assert read(path, packages=[{"name": "moved.pte", "sha256": "12"}]) == read(path)
    assert path.read_bytes() == before
    write(path, RECORDS[0], overwrite=True)
    assert list(read(path)) == ["1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a file of results"),
        ("notes\n", "line 1 of .* is not JSON"),
        ('{"image": "a.png"}\n', "is not a file of results"),
        ('{"llava_evaluation": 2}\n', "is not a file of results"),
        ('{"llava_evaluation": 1}\n', "of another package"),
    ],
)
def test_other_files_are_never_taken_for_results(content, message, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 1.5}, "a score that is not from 0 to 1"),
        ({"score": "good"}, "score in line 2 of .* must be a number"),
        ({"answer": None}, "answer in line 2"),
        ({"more": 1}, "which this version does not know"),
    ],
)
def test_damaged_records_are_told_with_the_line(change, message, tmp_path):
    path = tmp_path / "results.jsonl"
    write(path, RECORDS[0])
    first, line = path.read_text().splitlines()
    damaged = json.loads(line)
    damaged["results"][0] |= change
    path.write_text(f"{first}\n{json.dumps(damaged)}\n")
    with pytest.raises(DatasetError, match=message):
        read(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_do_not_write_to_one_file(overwrite, tmp_path):
    path = tmp_path / "results.jsonl"
    with results_file(path, HEADER, overwrite=False) as file:
        assert file is not None
        file.add(RECORDS[0])
        before = path.read_bytes(), path.stat().st_ino
        with pytest.raises(DatasetError, match="another process is writing"):
            write(path, RECORDS[1], overwrite=overwrite)
        assert (path.read_bytes(), path.stat().st_ino) == before
        file.add(RECORDS[2])
    assert list(read(path)) == ["1", "3"]


def test_a_file_that_is_replaced_is_held_as_well(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("notes, and more of them than a header has\n" * 99)
    with results_file(path, HEADER, overwrite=True) as file:
        assert file is not None and read(path) == {}
        file.add(RECORDS[1])
        for overwrite in (False, True):
            with pytest.raises(DatasetError, match="another process is writing"):
                write(path, RECORDS[0], overwrite=overwrite)
    assert list(read(path).values()) == [RECORDS[1]]
