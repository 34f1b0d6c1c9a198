"""Data sets are read in this project's layout and as published, and mistakes in them are told with the place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava_export.cli import evaluate, evaluate_dataset
from llava_export.errors import DatasetError
from llava_export.evaluate import reading
from llava_export.evaluate.datasets import Dataset, check_lengths, open_dataset, refuse_unreadable, unreadable
from llava_export.evaluate.items import Item, digest
from llava_export.evaluate.layouts import LAYOUTS, SHORT_ANSWER, Source
from llava_export.evaluate.scores import METRICS
from llava_runner.documents import MAX_LINE
from llava_runner.errors import ImageError, PromptError
from llava_runner.tokenizer import Tokenizer

ROW = {"image": "a.png", "question": "Why?", "answer": "Because."}


def write(path: Path, content: Any) -> Path:
    """Write a document, or a list of them as lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = content if isinstance(content, list) and path.suffix == ".jsonl" else [content]
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path)


def opened(path: Path, **options: Any) -> Dataset:
    images, split = options.pop("images", None), options.pop("split", "test")
    return open_dataset(Source(path, images=images, split=split), **options)


def test_the_command_offers_what_there_is():
    assert list(evaluate_dataset.LAYOUTS) == ["auto", *LAYOUTS] and list(evaluate_dataset.METRICS) == list(METRICS)


def test_items_are_lines_or_a_list_or_a_folder(tmp_path):
    rows = [{**ROW, "kind": "color"}, {"image": "b/c.png", "question": "Who?", "answers": ["I", 2], "id": 7}]
    lines = write(tmp_path / "items.jsonl", [rows[0], "", rows[1]])
    found = opened(lines)
    assert [(it.id, it.image, it.question, it.answers, it.kind) for it in found.items] == [
        ("1", "a.png", "Why?", ("Because.",), "color"),
        ("7", "b/c.png", "Who?", ("I", "2"), ""),
    ]
    assert found.metric.name == "exact" and found.folder == tmp_path
    assert opened(tmp_path).items == opened(write(tmp_path / "list.json", rows)).items == found.items
    assert [it.question for it in opened(lines, suffix=" Say.", limit=1).items] == ["Why? Say."]


def vqav2(folder: Path) -> Path:
    answers = [{"answer": "net", "answer_id": i, "answer_confidence": "yes"} for i in range(1, 11)]
    questions = [{"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}]
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_subtype": "val2014", "questions": questions})
    write(
        folder / "v2_mscoco_val2014_annotations.json",
        {"annotations": [{"question_id": 262148000, "image_id": 262148, "answer_type": "other", "answers": answers}]},
    )
    draw(folder / "val2014/COCO_val2014_000000262148.jpg")
    return folder


def textvqa(folder: Path) -> Path:
    row = {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "What brand?", "answers": ["dakota"] * 10}
    draw(folder / "train_images/003a8ae2ef43b901.jpg")
    return write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [row]})


def pope(folder: Path) -> Path:
    for kind in ("random", "adversarial"):
        row = {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a cat?", "label": "no"}
        write(folder / f"coco_pope_{kind}.json", row)
    draw(folder / "val2014/COCO_val2014_000000310196.jpg")
    return folder


def gqa(folder: Path) -> Path:
    row = {"question": "Is it overcast?", "imageId": "n161313", "answer": "no", "types": {"structural": "verify"}}
    write(folder / "testdev_balanced_questions.json", {"201307251": row})
    draw(folder / "images/n161313.jpg")
    return folder


def scienceqa(folder: Path) -> Path:
    problem = {
        "question": "Which is hotter?",
        "choices": ["the sun", "ice"],
        "answer": 1,
        "hint": "Think.",
        "image": "image.png",
        "lecture": "Heat is energy.",
    }
    write(folder / "problems.json", {"4": problem, "5": {**problem, "hint": "", "image": None, "answer": 0}})
    write(folder / "pid_splits.json", {"train": [], "test": ["4", "5"]})
    draw(folder / "images/test/4/image.png")
    return folder


def docvqa(folder: Path) -> Path:
    row = {"questionId": 337, "question": "What is the date?", "image": "documents/xnbl0037_1.png", "answers": ["1/8"]}
    draw(folder / "documents/xnbl0037_1.png")
    return write(folder / "val_v1.0.json", {"dataset_name": "docvqa", "data": [row]})


@pytest.mark.parametrize(
    ("make", "metric", "id", "question", "answers", "kind"),
    [
        (vqav2, "vqa", "262148000", "Where is he looking?" + SHORT_ANSWER, ("net",) * 10, "other"),
        (textvqa, "vqa", "34602", "What brand?" + SHORT_ANSWER, ("dakota",) * 10, ""),
        (pope, "yes-no", "adversarial/1", "Is there a cat?" + SHORT_ANSWER, ("no",), "adversarial"),
        (gqa, "caseless", "201307251", "Is it overcast?" + SHORT_ANSWER, ("no",), "verify"),
        (
            scienceqa,
            "letter",
            "4",
            "Context: Think.\nWhich is hotter?\nA. the sun\nB. ice\n"
            "Answer with the option's letter from the given choices directly.",
            ("B",),
            "with an image",
        ),
        (docvqa, "anls", "337", "What is the date?" + SHORT_ANSWER, ("1/8",), ""),
    ],
)
def test_published_layouts_are_known_and_read(make, metric, id, question, answers, kind, tmp_path):
    path = make(tmp_path)
    found = opened(path)
    first = found.items[0]
    assert (found.layout, found.metric.name) == (make.__name__, metric)
    assert (first.id, first.question, first.answers, first.kind) == (id, question, answers, kind)
    assert (found.folder / first.image).is_file()
    assert opened(path, layout=make.__name__).items == found.items
    assert unreadable(found.items, folder=found.folder, on_item=lambda: None) == {}


def published(make: Callable[[Path], Path], folder: Path, name: str) -> Path:
    """Return the file of a published layout under another name, and remove others like it."""
    made = make(folder)
    path = next(iter(sorted(made.glob("*pope*.json*")) or made.glob("*questions.json"))) if made.is_dir() else made
    path.rename(folder / name)
    for other in folder.glob("coco_pope_*.json"):
        other.unlink()
    return folder / name


@pytest.mark.parametrize(
    ("make", "name", "layout"),
    [
        (gqa, "questions.json", "gqa"),
        (gqa, "val_balanced_questions.json", "gqa"),
        (pope, "pope.json", "pope"),
        (pope, "pope_random.jsonl", "pope"),
        (pope, "aokvqa_pope.jsonl", "pope"),
        (pope, "gqa_pope_seem_popular.json", "pope"),
    ],
)
def test_layouts_are_known_by_words_of_names(make, name, layout, tmp_path):
    path = published(make, tmp_path, name)
    for given in (path, tmp_path):
        found = opened(given)
        assert (found.layout, len(found.items)) == (layout, 1)
    write(tmp_path / "popeye.json", ["notes"])  # beside it, and nothing of it
    assert opened(tmp_path).items == opened(path).items


def test_questions_beside_their_answers_are_vqav2(tmp_path):
    vqav2(tmp_path)
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").rename(tmp_path / "questions.json")
    (tmp_path / "v2_mscoco_val2014_annotations.json").rename(tmp_path / "annotations.json")
    for given in (tmp_path, tmp_path / "questions.json"):
        assert opened(given).layout == "vqav2"


@pytest.mark.parametrize("name", ["popeye.jsonl", "hopscotch_popes.jsonl", "myquestions.jsonl", "antipope.jsonl"])
def test_names_that_only_look_like_published_ones_are_items(name, tmp_path):
    path = write(tmp_path / name, [ROW])
    for given in (path, tmp_path):
        assert opened(given).layout == "items"


def test_what_layouts_have_beyond_one_item(tmp_path):
    assert [it.id for it in opened(pope(tmp_path / "p")).items] == ["adversarial/1", "random/1"]
    assert [it.id for it in opened(tmp_path / "p/coco_pope_random.json").items] == ["1"]
    without = opened(scienceqa(tmp_path / "s")).items[1]
    assert (without.image, without.answers, without.kind) == ("", ("A",), "text alone")
    assert without.question.startswith("Which is hotter?")
    found = opened(textvqa(tmp_path / "t"), images=tmp_path / "t/train_images", metric="anls")
    assert found.folder == tmp_path / "t/train_images" and found.metric.name == "anls"


def test_the_digest_tells_data_sets_apart(tmp_path):
    found = opened(vqav2(tmp_path))
    of_all = digest(found.items, folder=found.folder)
    assert of_all == digest(opened(tmp_path).items, folder=found.folder)
    assert of_all != digest(opened(tmp_path, suffix="").items, folder=found.folder)
    Image.new("RGB", (80, 60)).save(found.folder / found.items[0].image)
    assert of_all != digest(found.items, folder=found.folder)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no items"),
        (["", " "], "has no items"),
        ([ROW, "{"], "line 2 of .*items.jsonl is not JSON"),
        ([ROW, "", "[1]"], "line 3 of .*items.jsonl does not hold a JSON object"),
        ([{"image": "a.png", "question": "?"}], "line 1 of .* lacks answer or answers"),
        ([{**ROW, "answer": None}], "line 1 of .* lacks answer or answers"),
        ([{"image": "a.png", "question": "?", "answers": []}], "answers in line 1 of .* is \\[\\]; it must be a list"),
        ([{"image": "a.png", "question": "?", "answers": [["x"]]}], "must be a list of texts"),
        ([{"question": "?", "answer": "x"}], "line 1 of .* lacks image"),
        ([{**ROW, "question": 3}], "question in line 1 of .* is 3; it must be a text"),
        ([{**ROW, "question": " "}], "1 question \\(1\\) is empty"),
        ([{**ROW, "id": "x"}, {**ROW, "id": "y"}, {**ROW, "id": "x"}], "1 id \\(x\\) is twice"),
        ([{**ROW, "question": "x" * MAX_LINE}], "line 1 of .* has more than the 1,048,576 bytes"),
    ],
)
def test_mistakes_in_lines_are_told_with_the_place(lines, message, tmp_path):
    with pytest.raises(DatasetError, match=message):
        opened(write(tmp_path / "items.jsonl", lines))


def test_files_that_are_missing_or_of_another_kind(tmp_path):
    def refused(path: Path, message: str, **options: Any) -> None:
        with pytest.raises(DatasetError, match=message):
            opened(path, **options)

    refused(tmp_path / "nothing", "nothing does not exist")
    refused(tmp_path, "has no .jsonl with items, and none of the files of items, vqav2")
    refused(tmp_path, "no \\*questions.json; name the file itself", layout="vqav2")
    for name in ("a", "b"):
        write(tmp_path / f"two/{name}.jsonl", [ROW])
    refused(tmp_path / "two", "2 files \\*.jsonl: a.jsonl, b.jsonl; name the file itself")
    refused(write(tmp_path / "a.json", {"x": 1}), "does not hold a list of JSON objects")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe{}\n")
    refused(tmp_path / "bytes.jsonl", "line 1 of .* is not JSON")
    vqav2(tmp_path / "v")
    refused(tmp_path / "v", "is not a folder of images", images=tmp_path / "none")
    refused(tmp_path / "v", "no image of the data set is there: COCO_val2014_000000262148.jpg", images=tmp_path)
    (tmp_path / "v/v2_mscoco_val2014_annotations.json").unlink()
    refused(tmp_path / "v", "the answers to .* are missing: v2_mscoco_val2014_annotations.json", layout="vqav2")
    refused(write(tmp_path / "few.jsonl", [ROW]), "item 1 of .* cannot be scored by vqa: it takes", metric="vqa")
    refused(tmp_path / "few.jsonl", "cannot be scored by yes-no: its answer is 'Because.'", metric="yes-no")
    refused(tmp_path / "few.jsonl", "cannot be scored by letter", metric="letter")
    scienceqa(tmp_path / "s")
    refused(tmp_path / "s", "lacks minival", split="minival")
    (tmp_path / "s/images/test/4/image.png").unlink()
    refused(tmp_path / "s", "no image of the data set is there: 4/image.png is not in .*; --images says where")


@pytest.mark.parametrize("metric", [None, *METRICS])
def test_questions_without_answers_are_refused(metric, tmp_path):
    path = vqav2(tmp_path) / "v2_mscoco_val2014_annotations.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["answers"] = []
    write(path, document)
    with pytest.raises(DatasetError, match=r"1 question \(item 262148000\) is without answers"):
        opened(tmp_path, metric=metric)


@pytest.mark.parametrize("make", [textvqa, docvqa])
def test_lists_of_answers_are_never_empty(make, tmp_path):
    path = make(tmp_path)
    document = json.loads(path.read_text())
    document["data"][0]["answers"] = []
    with pytest.raises(DatasetError, match=r"answers in .* must be a list of texts"):
        opened(write(path, document))


@pytest.mark.parametrize("metric", ["yes-no", "letter"])
@pytest.mark.parametrize("answers", [["yes"] * 10, ["A", "B"]])
def test_metrics_of_one_answer_say_how_many_there_are(metric, answers, tmp_path):
    path = write(tmp_path / "items.jsonl", [{"image": "a.png", "question": "?", "id": "x", "answers": answers}])
    message = f"item x of .* by {metric}: it has {len(answers)} answers, and this metric takes one"
    with pytest.raises(DatasetError, match=message):
        opened(path, metric=metric)


@pytest.mark.parametrize(("text", "is_fine"), [("0", 1), ("0.9", 1), ("1", 1), ("90", 0), ("1.01", 0), ("-0.1", 0)])
def test_the_least_score_is_a_fraction(text, is_fine, capsys):
    command = ["package", "--dataset", "data", f"--at-least={text}"]
    if is_fine:
        assert evaluate.build_parser("evaluate").parse_args(command).at_least == float(text)
        return
    with pytest.raises(SystemExit) as ended:
        evaluate.main(command)
    assert ended.value.code == 2 and f"{text} is not a fraction, from 0 to 1" in capsys.readouterr().err


def test_questions_that_are_no_unicode_are_told_with_the_item(monkeypatch):
    monkeypatch.setattr(reading, "question_chunks", lambda question, **_: [question])
    reader: Any = object.__new__(reading.Reader)
    reader.card = SimpleNamespace(prompt=None, max_context_len=9)
    check: Any = Tokenizer.check  # uses nothing of a tokenizer
    reader._tokenizer = SimpleNamespace(encode_turn=lambda chunks: [check(None, it) for it in chunks])
    with pytest.raises(PromptError, match=r"^item 12: the prompt is not valid Unicode at character 2$"):
        check_lengths([Item("12", "", "Hi\ud800", ("x",))], [reader])


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:45])
    (tmp_path / "c.png").write_text("text")
    rows = [{**ROW, "image": f"{name}.png"} for name in "abcdb"]
    found = opened(write(tmp_path / "items.jsonl", rows))
    seen: list[None] = []
    reasons = unreadable(found.items, folder=tmp_path, on_item=lambda: seen.append(None))
    assert list(reasons) == ["b.png", "c.png", "d.png"] and len(seen) == 5
    with pytest.raises(ImageError, match=r"3 images \(b.png, c.png, d.png\) are unreadable: .*b.png.*--skip-unr"):
        refuse_unreadable(reasons)
    refuse_unreadable({})
