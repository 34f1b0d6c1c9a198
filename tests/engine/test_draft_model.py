"""A session with a model that drafts. The model drafts for itself here, so without an image each guess is right."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Iterator
from ctypes import byref
from pathlib import Path

import pytest

from llava_runner.engine import OK, Engine
from llava_runner.engine_library import OpenOptions, load_library
from llava_runner.errors import PackageError
from tests.engine.test_c_interface import NEW_TOKENS, QUESTION, answer, asked

CONVERSATION = (QUESTION, "How many shapes are there?", "Is there a red circle?")


@pytest.fixture(scope="module")
def opened(library, package) -> Iterator[Engine]:
    """Return a session with a draft for all tests of this file."""
    engine = Engine(package, library=library, draft_model_path=package)
    yield engine
    engine.close()


@pytest.fixture
def drafted(opened) -> Engine:
    """Return a session with a draft, without a conversation. What both KV caches hold is that of the test before."""
    opened.reset()
    return opened


def answer_as_drafted(engine: Engine, question: str) -> tuple[str, list[int]]:
    """Return an answer whose every guess was right. Its end is not counted, as nothing is decoded after it."""
    text = answer(engine, question, max_new_tokens=20)
    last = engine.last()
    assert last.num_drafted - 1 <= last.num_accepted <= last.num_drafted >= last.num_tokens // 2 > 1
    return text, engine.last_ids()


def altered_draft(package: Path, folder: Path, name: str) -> Path:
    """Return a package one of whose files is to be altered."""
    folder.mkdir()
    for each in ("llava.pte", "llava.json", "tokenizer.bin"):
        shutil.copy(package / each, folder) if each == name else (folder / each).symlink_to(package / each)
    return folder


def test_answers_are_those_without_a_draft(drafted, scenes):
    guesses = 0
    for scene in scenes[:20]:
        text = asked(drafted, scene.content, scene.question, new_conversation=1, max_new_tokens=NEW_TOKENS)
        assert (text, drafted.last_ids()) == (scene.text, scene.ids)
        guesses += drafted.last().num_drafted
    assert guesses > 20
    answer(drafted, QUESTION, draft_max=-1)
    assert drafted.last().num_drafted == 0


def test_turns_are_those_without_a_draft(engine, drafted):
    for question in CONVERSATION:
        assert answer_as_drafted(drafted, question) == (answer(engine, question, max_new_tokens=20), engine.last_ids())


def test_a_kept_conversation_is_read_by_the_draft_again(drafted):
    """What is kept is the large model's alone, and another conversation came between."""
    answer_as_drafted(drafted, CONVERSATION[0])
    saved = drafted.save()
    expected = answer_as_drafted(drafted, CONVERSATION[1])
    drafted.reset()
    answer_as_drafted(drafted, "Something else?")
    drafted.restore(saved)
    assert answer_as_drafted(drafted, CONVERSATION[1]) == expected


def test_a_session_goes_on_with_what_one_without_a_draft_has_kept(engine, drafted):
    answer(engine, CONVERSATION[0], max_new_tokens=20)
    drafted.restore(engine.save())
    expected = answer(engine, CONVERSATION[1], max_new_tokens=20), engine.last_ids()
    assert answer_as_drafted(drafted, CONVERSATION[1]) == expected
    engine.restore(drafted.save())
    assert answer_as_drafted(drafted, CONVERSATION[2])[0] == answer(engine, CONVERSATION[2], max_new_tokens=20)


@pytest.mark.parametrize("tokens", range(1, 6))
def test_an_answer_that_is_cancelled_within_a_guess_goes_on_without_it(tokens, engine, drafted):
    for each in (engine, drafted):
        each.begin(CONVERSATION[0])
        for _ in range(tokens):
            each.next()
        each.cancel()
        assert each.next() in ("", None) and each.last().num_tokens == tokens
    assert answer_as_drafted(drafted, CONVERSATION[1])[0] == answer(engine, CONVERSATION[1], max_new_tokens=20)


@pytest.mark.parametrize("text", ["A red circle.", ""])
def test_the_draft_reads_an_answer_that_was_given(text, engine, drafted):
    for each in (engine, drafted):
        answer(each, CONVERSATION[0], max_new_tokens=5)
        each.set_answer(text)
    assert answer_as_drafted(drafted, CONVERSATION[1])[0] == answer(engine, CONVERSATION[1], max_new_tokens=20)


def test_another_vocabulary_is_refused(library, package, tmp_path):
    draft = altered_draft(package, tmp_path / "draft", "tokenizer.bin")
    content = bytearray((draft / "tokenizer.bin").read_bytes())
    content[content.rindex(b"e")] = ord("E")
    (draft / "tokenizer.bin").write_bytes(content)
    message = r"llava\.pte cannot draft for this model: its vocabulary is another, token \d+ is '.*E.*' and not '.*e.*'"
    with pytest.raises(PackageError, match=message):
        Engine(package, library=library, draft_model_path=draft)


@pytest.mark.parametrize(("name", "message"), [("llava.pte", "is truncated"), ("tokenizer.bin", "tokenizer")])
def test_a_damaged_draft_is_refused(name, message, library, package, tmp_path):
    draft = altered_draft(package, tmp_path / "draft", name)
    content = (draft / name).read_bytes()
    (draft / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(PackageError, match=message):
        Engine(package, library=library, draft_model_path=draft)


def test_a_draft_that_is_missing_is_named(library, package, tmp_path):
    with pytest.raises(PackageError, match="nowhere does not exist"):
        Engine(package, library=library, draft_model_path=tmp_path / "nowhere")
    with pytest.raises(PackageError, match="has no program"):
        Engine(package, library=library, draft_model_path=tmp_path)
    with pytest.raises(PackageError, match="is not an ExecuTorch program"):
        Engine(package, library=library, draft_model_path=package / "tokenizer.bin")


def test_a_caller_of_an_older_version_has_no_draft(library, package, tmp_path):
    """Its structure ends before the field."""
    functions, number = load_library(library), ctypes.c_int64()
    options = OpenOptions(draft_model_path=bytes(tmp_path / "nowhere"))
    options.struct_size = OpenOptions.draft_model_path.offset
    assert functions.llava_open(bytes(package), byref(options), byref(number)) == OK
    assert functions.llava_close(number) == OK


def draft_that_says(package: Path, folder: Path, **numbers: int) -> Path:
    """Return the package with other numbers in its card. There is no manifest that would tell."""
    folder.mkdir()
    content = (package / "llava.pte").read_bytes()
    for name, number in numbers.items():
        (old,) = re.findall(rf'"{name}": \d+'.encode(), content)
        content = content.replace(old, f'"{name}":{number:{len(old) - len(name) - 3}}'.encode())
    (folder / "llava.pte").write_bytes(content)
    (folder / "tokenizer.bin").symlink_to(package / "tokenizer.bin")
    return folder


def test_where_the_context_of_the_draft_ends_nothing_is_guessed(engine, library, package, tmp_path):
    draft = draft_that_says(package, tmp_path / "draft", max_context_len=70, max_seq_len=70)
    drafted = Engine(package, library=library, draft_model_path=draft)
    counts: list[int] = []
    for question in (*CONVERSATION, *CONVERSATION):
        options = {"max_new_tokens": 20}
        assert answer(drafted, question, **options) == answer(engine, question, **options)
        counts.append(drafted.last().num_drafted)
    assert counts[0] > 0 and counts[2:] == [0] * 4
    drafted.close()


def test_the_draft_reads_what_is_longer_than_its_calls_in_parts(drafted, library, package, tmp_path):
    draft = draft_that_says(package, tmp_path / "draft", max_seq_len=16)
    in_parts = Engine(package, library=library, draft_model_path=draft)
    for question in ("What is in the image? " * 8, *CONVERSATION):
        assert answer_as_drafted(in_parts, question) == answer_as_drafted(drafted, question)
    in_parts.close()
