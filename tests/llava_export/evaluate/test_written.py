"""What an evaluation writes never replaces what it reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llava_export.cli import evaluate, evaluate_dataset
from llava_export.evaluate.datasets import open_dataset
from llava_export.evaluate.layouts import Source

READ = (
    "package/llava.pte",
    "package/llava.json",
    "package/tokenizer.model",
    "package/llava.golden",
    "other/b.pte",
    "other/more/notes.txt",
    "data/items.jsonl",
    "data/more/b.png",
    "data/pid_splits.json",
    "data/v2_OpenEnded_mscoco_val2014_questions.json",
    "data/v2_mscoco_val2014_annotations.json",
    "images/a.png",
    "checkpoint/config.json",
    "checkpoint/shards/1.safetensors",
    "tower/config.json",
    "projector.bin",
    "base/config.json",
    "corpus.txt",
    "calibration/a.png",
    "samples.jsonl",
    "sample.png",
)
PARTS = "--vision-tower tower --projector projector.bin --base-model base"
DATASET = f"package --dataset data --images images --against checkpoint {PARTS}"
ITEMS = f"package/llava.pte --dataset data/items.jsonl --compare other --against checkpoint {PARTS}"
TEXT = f"package --text corpus.txt --against checkpoint {PARTS}"
RECIPE = "--model checkpoint --text corpus.txt --algorithm gptq --calibration-data"
CHANGED = [
    *((f"{DATASET} --json", file) for file in READ[:4] + READ[6:17]),
    *((f"{ITEMS} --html", file) for file in READ[:7] + READ[12:17]),
    *((f"{DATASET} --overwrite --output", file) for file in READ[:4] + READ[6:17]),
    (f"{ITEMS} --json", "data/pid_splits.json"),
    (f"{ITEMS} --output", "package/llava.pte"),
    (f"{DATASET} --output", "projector.bin"),
    ("package --dataset data/v2_OpenEnded_mscoco_val2014_questions.json --json", READ[10]),
    *((f"{TEXT} --json", file) for file in READ[:4] + READ[12:18]),
    *((f"{RECIPE} calibration --json", file) for file in (READ[12], READ[13], READ[17], READ[18])),
    *((f"{RECIPE} samples.jsonl --json", file) for file in READ[19:]),
    (f"{TEXT} --json", "linked.txt"),
    (f"{TEXT} --json", "hard.txt"),
    (f"{DATASET} --json", "store.bin"),
    (f"{DATASET} --json", "package/../package/llava.pte"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with all that can be read, which is the current one."""
    for name in READ:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as it was")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"image": "sample.png", "question": "?"}))
    (tmp_path / "linked.txt").symlink_to("corpus.txt")
    os.link(tmp_path / "corpus.txt", tmp_path / "hard.txt")
    (tmp_path / "store.bin").write_text("as it was")
    (tmp_path / "checkpoint/model.safetensors").symlink_to("../store.bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("flags", "file"), CHANGED)
def test_what_is_read_is_never_replaced(flags, file, folder, capsys):
    before = (folder / file).read_bytes()
    with pytest.raises(SystemExit) as ended:
        evaluate.main([*flags.split(), file])
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.count("\n") == 1
    assert f"{file} " in message and ("is read" in message or "belong to" in message)
    assert (folder / file).read_bytes() == before


def checked(flags: str) -> None:
    evaluate_dataset.check(evaluate.build_parser("evaluate").parse_args(flags.split()))


def test_other_files_may_be_written(folder):
    for name in ("results.jsonl", "old.json", "package/results.jsonl"):
        (folder / name).write_text("{}")
    for flags in (
        f"{DATASET} --output results.jsonl --json old.json",
        f"{ITEMS} --overwrite --output results.jsonl --json old.json --html new.html",
        f"{ITEMS} --json images/a.png --html corpus.txt",
        f"{DATASET} --output package/results.jsonl",  # goes on with it, if it is a file of results
        f"{DATASET} --json package/new.json",
        f"{DATASET} --json /dev/null",
    ):
        checked(flags)


def test_images_that_items_name_are_read(folder, monkeypatch, capsys):
    """They may lie anywhere. The packages are looked at later."""
    rows = [{"image": f"../{name}", "question": "?", "answer": "!"} for name in ("none.png", "\0", "sample.png")]
    (folder / "data/items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(open_dataset(Source(folder / "data/items.jsonl")).items) == len(rows)
    for flag in ("--json", "--output", "--overwrite --output"):
        with pytest.raises(SystemExit) as ended:
            evaluate.main(f"package --dataset data/items.jsonl {flag} sample.png".split())
        assert ended.value.code == 2
        assert "sample.png belongs to what is read" in capsys.readouterr().err
    assert (folder / "sample.png").read_text() == "as it was"
