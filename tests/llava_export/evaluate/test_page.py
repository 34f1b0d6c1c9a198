"""The page of the items on which two packages differ: which are on it, with their pictures inside, and no markup."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from llava_export.cli.evaluate_tables import print_kinds
from llava_export.evaluate.datasets import Dataset
from llava_export.evaluate.page import MOST_ITEMS, SIDE, page
from llava_export.evaluate.records import Record, Result
from llava_export.evaluate.scores import METRICS
from llava_export.staging import write_whole


class Read(HTMLParser):
    """What a browser finds: the text, the pictures, and the names of all elements, which must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.pictures: list[Image.Image] = []
        self.names: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag == "img":
            kind, _, content = (dict(attrs)["src"] or "").partition(",")
            assert kind == "data:image/jpeg;base64"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))
        elif tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.texts.append(data)


def record(id: str, image: str, *answers: tuple[str, float]) -> Record:
    return Record(id, "", image, "Why <b>?", ("x & y",), tuple(Result(text, score, 1) for text, score in answers))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    Image.new("RGB", (SIDE * 4, SIDE), "red").save(tmp_path / "wide.png")
    Image.new("L", (10, 20)).save(tmp_path / "gray.png")
    return Dataset("<data>", "items", METRICS["exact"], (), tmp_path)


def test_the_items_that_differ_are_shown_with_their_pictures(dataset):
    records = [
        record("same", "wide.png", ("x & y", 1), ("x & y", 1)),
        record("first", "wide.png", ("x & y", 1), ("</div><script>", 0)),
        record("second", "gray.png", ("", 0), ("x & y", 1)),
        record("other words", "", ("v", 0), ("w", 0)),
        record("no picture any more", "gone.png", ("", 0), ("x & y", 1)),
    ]
    found = Read(page(records, dataset, names=["a<b", "c"]))
    assert [picture.size for picture in found.pictures] == [(SIDE, SIDE // 4), (10, 20)]
    text = " ".join("".join(found.texts).split())
    for expected in ("Two packages on <data>", "One package is better in 3 of them", "McNemar's exact test: p = 1."):
        assert expected in text
    for expected in ("a<b", "</div><script>", "Why <b>?", "x & y", "nothing"):
        assert expected in found.texts
    assert "script" not in found.names and "b" not in found.names
    parts = text.partition("Better in A: 1")[2].partition("Better in B: 2")
    last = parts[2].partition("Other words, the same score: 1")
    for part, ids in ((parts[0], ["first"]), (last[0], ["second", "no picture any more"]), (last[2], ["other words"])):
        assert part.count("Why <b>?") == len(ids) and all(id in part for id in ids)
    assert "same" not in [it.strip() for it in found.texts]


def test_a_long_page_says_what_it_leaves_out(dataset):
    records = [record(str(i), "", ("x & y", 1), ("v", 0)) for i in range(MOST_ITEMS + 5)]
    found = Read(page(records, dataset, names=["a", "b"]))
    assert found.names.count("article") == MOST_ITEMS
    assert f"The first {MOST_ITEMS} of {MOST_ITEMS + 5}." in found.texts


def test_a_page_without_differences_has_no_items(dataset):
    found = Read(page([record("same", "wide.png", ("v", 0), ("v", 0))], dataset, names=["a", "b"]))
    assert "article" not in found.names and "h2" not in found.names and found.pictures == []


def test_half_characters_of_any_text_are_spelled_out(dataset, tmp_path):
    """JSON may have them anywhere, and names of files, too. The tables that are printed have the kinds."""
    half = "\udcff\ud800"
    results = tuple(Result(text, score, 1) for text, score in ((f"{half}a", 0.0), (f"{half}b", 1.0)))
    odd = Record(f"{half}1", f"{half}kind", f"{half}.png", f"{half}?", (half,), results, f"{half}float", 0.0)
    whole = page([odd], replace(dataset, name=half), names=[f"{half}.pte", "b"])
    write_whole(tmp_path / "page.html", whole)
    found = Read((tmp_path / "page.html").read_text(encoding="utf-8"))
    for rest in ("1", "kind", "?", "a", "b", "float", ".pte", ""):
        assert any(f"\\udcff\\ud800{rest}" in text for text in found.texts)
    assert found.pictures == []
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")  # as all commands print
    print_kinds(Console(file=out), [odd], ["a", "b"], has_float=True)
    out.seek(0)
    assert "\\udcff\\ud800kind" in out.read()
