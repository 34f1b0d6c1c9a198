"""A package is asked about a data set: in one process, killed and run again, or on a cluster, with the same figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest
import ray
from PIL import Image
from ray import cloudpickle

from benchmarks.scenes import write_scenes
from llava_export.cli import evaluate
from llava_export.errors import DatasetError
from llava_export.evaluate.asking import Job, ask_here
from llava_export.evaluate.datasets import Dataset, open_dataset
from llava_export.evaluate.items import Item
from llava_export.evaluate.layouts import Source
from llava_export.evaluate.ray_engine import ATTEMPTS, _cluster, _spread, ask_on_ray
from llava_export.evaluate.records import Record
from llava_runner.errors import ImageError, UserError
from llava_runner.session import Session

COUNT = 24


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, count=COUNT, first=1000)
    return folder


@pytest.fixture(scope="module")
def dataset(scenes) -> Dataset:
    return open_dataset(Source(scenes))


@pytest.fixture(scope="module")
def job(tiny_package, scenes) -> Job:
    return Job((tiny_package.program,), scenes, metric="exact", max_new_tokens=40, against="tiny-llava")


@pytest.fixture(scope="module")
def records(job, dataset) -> dict[str, Record]:
    return {record.id: record for record in ask_here(job, dataset.items)}


def run(*flags: object) -> int:
    return evaluate.run(evaluate.build_parser().parse_args(list(map(str, flags))))


def test_answers_are_those_of_a_session(records, dataset, tiny_package):
    with Session.load(tiny_package.program) as session:
        for item in dataset.items:
            answer = session.ask(dataset.folder / item.image, item.question, max_new_tokens=40, temperature=0)
            (result,) = records[item.id].results
            assert (result.answer, result.tokens) == (answer.strip(), len(session.last.ids))
            assert result.score == (answer.strip() in item.answers)
    assert sum(record.results[0].score for record in records.values()) > COUNT / 2


def test_a_package_agrees_with_its_checkpoint(records):
    for record in records.values():
        (result,) = record.results
        assert result.agreed >= result.compared - 1 and 0 <= result.kl / result.compared < 0.05
        assert (result.first_difference is None) == (result.answer == record.float_answer)


DYING = """
import os, signal, sys
from llava_export.cli import evaluate
from llava_export.evaluate.asking import Asker

ask = Asker.ask


def ask_or_die(self, item):
    if item.id == "1010":
        os.kill(os.getpid(), signal.SIGKILL)
    return ask(self, item)


Asker.ask = ask_or_die
evaluate.main(sys.argv[1:])
"""


def test_a_killed_evaluation_goes_on_and_gives_the_same_figures(job, scenes, tmp_path):
    output, figures = tmp_path / "results.jsonl", tmp_path / "figures.json"
    flags = [*map(str, (job.programs[0], "--dataset", scenes, "--against", "tiny-llava", "--max-new-tokens", 40))]
    assert run(*flags, "--json", tmp_path / "whole.json") == 0
    flags += ["--output", str(output), "--json", str(figures)]
    done = subprocess.run([sys.executable, "-c", DYING, *flags], stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL and not figures.exists()
    written = output.read_text().splitlines()
    assert len(written) == 1 + 10
    with output.open("a") as file:
        file.write('{"id": "torn')
    assert run(*flags) == 0
    assert figures.read_text() == (tmp_path / "whole.json").read_text()
    lines = output.read_text().splitlines()
    assert lines[: len(written)] == written
    assert sorted(json.loads(line)["id"] for line in lines[1:]) == sorted(str(1000 + i) for i in range(COUNT))
    before = output.read_bytes()
    assert run(*flags) == 0
    assert output.read_bytes() == before
    with pytest.raises(DatasetError, match="has the results of other options"):
        run(*flags, "--max-new-tokens", 3)
    assert output.read_bytes() == before


def test_two_packages_are_compared_on_a_page(tiny_package, package_of, scenes, tmp_path, capsys):
    html, figures = tmp_path / "page.html", tmp_path / "figures.json"
    other = package_of("tiny-mobilevlm").folder
    flags = ["--dataset", scenes, "--compare", other, "--html", html, "--json", figures, "--max-new-tokens", 5]
    assert run(tiny_package.folder, *flags, "--at-least", 0.1) == 0
    assert run(tiny_package.folder, *flags, "--at-least", 1) == 1
    contest = json.loads(figures.read_text())["contest"]
    printed = capsys.readouterr().out
    assert f"McNemar's exact test: p = {contest['p_value']:.3g}" in printed
    page = html.read_text()
    assert f"p = {contest['p_value']:.3g}" in page
    assert page.count("<img ") == page.count("<article>") >= contest["first_better"] + contest["second_better"]


def write_items(folder: Path, *items: dict[str, str], images: Sequence[str] = ()) -> Path:
    for name in images:
        Image.new("RGB", (20, 10), "red").save(folder / name)
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps({"question": "Why?", "answer": "x", **item}) + "\n" for item in items))
    return path


@pytest.mark.parametrize(
    ("items", "images", "flags", "message"),
    [
        ([], [], [], "items.jsonl has no items"),
        ([{"image": "a.png"}, {"image": "b.png"}], [], [], r"2 images \(a.png, b.png\) are unreadable: .*a.png"),
        ([{"image": "a.png"}], [], ["--skip-unreadable"], r"1 image \(a.png\) is unreadable"),
        ([{"image": "a.png"}, {"image": "b.png"}], ["a.png"], [], r"1 image \(b.png\) is unreadable: .*--skip-unr"),
        ([{"question": "Why? " * 3000, "image": "a.png"}], ["a.png"], [], r"1 question \(item 1\) is too long for the"),
        ([{"question": "Why?"}], [], [], "line 1 of .*items.jsonl lacks image"),
        ([{"image": "a.png"}], ["a.png"], ["--metric", "vqa"], "item 1 of .* cannot be scored by vqa"),
        ([{"image": "a.png"}], ["a.png"], ["--against", "nowhere"], "nowhere"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(items, images, flags, message, tiny_package, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    dataset = write_items(folder, *items, images=images)
    before = sorted(tmp_path.rglob("*"))
    written = ["--output", tmp_path / "results.jsonl", "--json", tmp_path / "figures.json"]
    with pytest.raises(UserError, match=message) as raised:
        run(tiny_package.program, "--dataset", dataset, *written, *flags)
    assert len(raised.value.lines) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_unreadable_images_are_skipped_on_request_and_named(tiny_package, tmp_path, capsys):
    items = [{"image": "a.png", "id": "x"}, {"image": "torn.png", "id": "y"}, {"image": "a.png", "id": "z"}]
    dataset, figures = write_items(tmp_path, *items, images=["a.png", "torn.png"]), tmp_path / "figures.json"
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:45])
    flags = ["--dataset", dataset, "--skip-unreadable", "--json", figures, "--max-new-tokens", 2]
    assert run(tiny_package.program, *flags) == 0
    found = json.loads(figures.read_text())
    assert found["items"] == 2 and list(found["skipped"]) == ["torn.png"]
    printed = capsys.readouterr().out
    assert "1 of the images cannot be read" in printed and str(tmp_path / "torn.png") in printed


def workers() -> set[int]:
    """Return the ids of the workers that this process's cluster runs on this machine."""
    parents, found = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.add(int(folder.name))
        except OSError:  # it has just ended
            continue

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return {process for process in found if is_ours(process)}


def test_two_workers_of_a_cluster_of_which_one_is_killed_give_the_same_records(job, dataset, records):
    lost: list[Item] = []
    coming = ask_on_ray(job, dataset.items, workers=2, address=None, on_lost=lost.append)
    found, seen = [next(coming)], set[int]()
    while len(seen) < 2:  # both have an item by now
        seen |= workers()
        time.sleep(0.05)
    killed = min(seen)
    os.kill(killed, signal.SIGKILL)
    for record in coming:
        found.append(record)
        seen |= workers()
    assert len(lost) == 1 and len(seen) == 3, "no worker took the place of the one that was killed"
    assert len(found) == COUNT
    assert {record.id: record for record in found} == records


class Dying:
    """A worker that does not live to answer about the item "bad", and answers about others with a mistake."""

    def ask(self, item: Item) -> ImageError:
        if item.id == "bad":
            os._exit(1)
        return ImageError(f"{item.image} is gone")


def test_an_item_that_ends_every_worker_and_a_mistake_in_one_are_told():
    bad, other = (Item(id, "x.png", "?", ("",)) for id in ("bad", "other"))
    lost: list[Item] = []
    with _cluster(1, None):
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # or each worker imports all that this file does
        actor = ray.remote(Dying)
        with pytest.raises(DatasetError, match=f"item bad has ended {ATTEMPTS} workers"):
            list(_spread(actor.remote, deque([bad]), count=1, on_lost=lost.append))
        assert lost == [bad] * (ATTEMPTS - 1)
        with pytest.raises(ImageError, match=r"x\.png is gone"):
            list(_spread(actor.remote, deque([other]), count=1, on_lost=lost.append))
