"""Answers with guessed tokens: they are those without guesses, and a draft must fit its model."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from pytorch_tokenizers.llama2c import Llama2cTokenizer

from llava_runner.arguments import UNUSED_DRAFT
from llava_runner.tokenizer_file import load_tokenizer
from tests.integration.llava_main import QUESTION, command
from tests.runner.conftest import train_tokenizer
from tests.runner.fake_program import make_card
from tests.runner.tiny_program import build_pte

# The first question comes again, so its answer can be looked up.
TURNS = "How many shapes are there?\nWhat is in the image?\nIs there a red circle?\nWhat is in the image?\n"


def answers(llava_main: Path, package: Path, *flags: str) -> list[dict]:
    """Return the answers to a question about the package's image and to four more, as JSON has them."""
    done = subprocess.run(
        command(llava_main, package, "--interactive", "--json", *flags), input=TURNS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ids_of(found: list[dict]) -> list[list[int]]:
    return [answer["ids"] for answer in found]


@pytest.fixture(scope="module")
def plain(llava_main, tiny_package) -> list[list[int]]:
    """Return the ids of the answers without guesses."""
    return ids_of(answers(llava_main, tiny_package.folder, "--draft-max=0"))


@pytest.mark.parametrize("most", [1, 4, 7, 15])
def test_answers_with_guesses_are_those_without(most, llava_main, tiny_package, plain):
    assert ids_of(answers(llava_main, tiny_package.folder, f"--draft-max={most}")) == plain


@pytest.mark.parametrize("flags", [("--temperature=0.7",), ("--temperature=1.5", "--top-k=20"), ("--top-p=0.8",)])
def test_a_seed_gives_the_same_sample_with_guesses_and_without(flags, llava_main, tiny_package):
    flags = (*flags, "--temperature=1", "--seed=7", "--repetition-penalty=0.9", "--max-new-tokens=20")
    expected, found = (answers(llava_main, tiny_package.folder, f"--draft-max={n}", *flags) for n in (0, 7))
    assert ids_of(found) == ids_of(expected)


def test_what_was_said_before_is_guessed(llava_main, tiny_package):
    """Nearly the whole answer, where the same question comes again."""
    done = subprocess.run(
        command(llava_main, tiny_package.folder, "--interactive"), input=TURNS, capture_output=True, text=True
    )
    drafts = [line.split() for line in done.stderr.splitlines() if " draft = " in line]
    accepted, drafted = int(drafts[-1][3]), int(drafts[-1][6])
    assert 10 <= accepted <= drafted <= accepted + 4


def test_a_model_that_drafts_changes_no_answer(llava_main, tiny_package, plain):
    """The model itself is a draft whose every guess is right, as far as it sees no image."""
    flag = f"--draft-model-path={tiny_package.folder}"
    assert ids_of(answers(llava_main, tiny_package.folder, flag)) == plain
    done = subprocess.run(command(llava_main, tiny_package.folder, flag), capture_output=True, text=True)
    assert " draft = " in done.stderr and done.stdout.startswith("The image shows")


def test_the_weights_of_a_draft_are_packed_once(llava_main, tiny_package, package, plain):
    notes = []
    for _ in range(2):
        asked = command(llava_main, tiny_package.folder, f"--draft-model-path={package}", "--max-new-tokens=1")
        done = subprocess.run(asked, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        notes.append([line for line in done.stderr.splitlines() if line.startswith("note: ")])
    assert notes == [["note: packing weights for this processor, once"], []]
    assert len(list(package.glob("*.packed"))) == 1


def test_a_draft_of_another_vocabulary_is_refused_by_its_first_token(llava_main, tiny_package, tmp_path):
    draft = tmp_path / "draft"
    draft.mkdir()
    (draft / "llava.pte").write_bytes(tiny_package.program.read_bytes())
    bin = bytearray((tiny_package.folder / "tokenizer.bin").read_bytes())
    at = bin.rindex(b"e")
    bin[at] = ord("E")
    (draft / "tokenizer.bin").write_bytes(bin)
    done = subprocess.run(
        command(llava_main, tiny_package.folder, f"--draft-model-path={draft}"), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "cannot draft for this model: its vocabulary is another, token " in done.stderr


@pytest.mark.parametrize(
    "flags", [("--draft-model-path={package}",), ("--model-draft={language_model}", "--draft-max=3")], ids=str
)
def test_both_runners_guess_the_same_by_a_model(flags, both, tiny_package, language_model, plain):
    flags = [each.format(package=tiny_package.folder, language_model=language_model.program) for each in flags]
    flags += ["--interactive", "--json", f"--prompt={QUESTION}", f"--image={tiny_package.folder}/image.png"]
    python, cpp = both([f"--model-path={tiny_package.folder}", *flags], stdin=TURNS.encode())
    assert (python.code, cpp.code) == (0, 0) and python.notes == cpp.notes == []
    found = [[json.loads(line) for line in ended.out.splitlines()] for ended in (python, cpp)]
    for answer, other in zip(*found, strict=True):
        assert all(answer[name] == other[name] for name in ("ids", "text", "stop_reason", "draft"))
        assert answer["draft"]["drafted"] > 0
    assert ids_of(found[0]) == plain


def test_a_draft_is_left_out_where_no_guess_can_be_checked(both, tmp_path):
    """It would not load: its program has a head alone."""
    program = build_pte(make_card(vocab_size=load_tokenizer(train_tokenizer(tmp_path / "tokenizer.model")).vocab_size))
    Llama2cTokenizer(str(tmp_path / "tokenizer.model")).export(str(tmp_path / "tokenizer.bin"))
    draft = tmp_path / "draft"
    draft.mkdir()
    for name in ("tokenizer.model", "tokenizer.bin"):
        shutil.copy(tmp_path / name, draft)
    (tmp_path / "llava.pte").write_bytes(program)
    (draft / "llava.pte").write_bytes(program[:40] + bytes(len(program) - 40))
    flags = [f"--model-path={tmp_path}", f"--prompt={QUESTION}", "--max-new-tokens=8"]
    plain, _ = both(flags)
    for ended in both([*flags, f"--draft-model-path={draft}"]):
        assert (ended.code, ended.out) == (0, plain.out)
        assert ended.notes == [f"note: {UNUSED_DRAFT}"] and "draft" not in ended.err.partition("\n")[2]


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--draft-max=16", "--draft-max: 16 must be from 0 to 15"),
        ("--draft-max=-1", "--draft-max"),
        ("--draft-model-path=/nowhere", "/nowhere does not exist"),
        ("--draft-model-path=", "--draft-model-path"),
    ],
)
def test_mistakes_are_named(flag, reason, llava_main, tiny_package):
    done = subprocess.run(
        [llava_main, "--prompt", QUESTION, f"--model-path={tiny_package.folder}", flag], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == "" and reason in done.stderr
