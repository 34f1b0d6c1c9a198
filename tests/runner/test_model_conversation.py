"""Sessions that compute in Python: with a model that is interrupted, and with ExecuTorch's Python runtime."""

from __future__ import annotations

import sys
import time

import pytest

from llava_runner.errors import PackageError, PromptError, StateError
from llava_runner.model_conversation import ModelConversation
from llava_runner.program import Program
from llava_runner.session import Session
from tests.runner.fake_program import FakeProgram, make_card
from tests.runner.sessions import conversation_of, model_session
from tests.runner.test_session import IMAGE, QUESTION
from tests.runner.test_session_threads import QUESTIONS, in_child, in_threads


def model_of(session):
    conversation = conversation_of(session)
    assert isinstance(conversation, ModelConversation)
    return conversation._model


def test_a_turn_interrupted_while_it_is_read_has_not_happened(make_session):
    disturbed, calm = make_session(), make_session()
    for session in (disturbed, calm):
        list(session.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    model_of(disturbed).interrupt_next = True
    with pytest.raises(KeyboardInterrupt):
        disturbed.chat("How many shapes are there?")
    for session in (disturbed, calm):
        list(session.chat("And what color?", max_new_tokens=5))
    assert disturbed.last.ids == calm.last.ids


def test_a_token_interrupted_while_it_is_decoded_is_decoded_again(make_session):
    disturbed, calm = make_session(), make_session()
    pieces = disturbed.chat(QUESTION, image=IMAGE, max_new_tokens=4)
    model_of(disturbed).interrupt_next = True
    with pytest.raises(KeyboardInterrupt):
        list(pieces)
    list(calm.chat(QUESTION, image=IMAGE, max_new_tokens=1))
    assert disturbed.last.ids == calm.last.ids
    for session in (disturbed, calm):
        list(session.chat("And what color?", max_new_tokens=5))
    assert disturbed.last.ids == calm.last.ids


def test_a_guess_interrupted_while_it_is_checked_has_not_been_made(make_session):
    for count in range(30, 36):
        disturbed, calm = make_session(repeats=True), make_session(repeats=True)
        pieces = disturbed.chat(QUESTION, image=IMAGE)
        while len(disturbed.last.ids) < count:
            next(pieces)
        model_of(disturbed).interrupt_next = True
        with pytest.raises(KeyboardInterrupt):
            list(pieces)
        list(calm.chat(QUESTION, image=IMAGE, max_new_tokens=len(disturbed.last.ids), draft_max=0))
        assert disturbed.last.ids == calm.last.ids
        for session in (disturbed, calm):
            list(session.chat("And what color?", max_new_tokens=5))
        assert disturbed.last.ids == calm.last.ids


def test_guesses_save_calls_of_the_model(make_session):
    session = make_session(repeats=True)
    session.ask(IMAGE, QUESTION, draft_max=0)
    calls = model_of(session).calls
    session.ask(IMAGE, QUESTION)
    accepted = session.last.timings.accepted
    assert model_of(session).calls - calls == calls - 2 * accepted  # an embedding and a decoding each
    assert accepted > len(session.last.ids) // 2


def test_tokenizer_of_another_vocabulary(tokenizer):
    with pytest.raises(PackageError, match=f"{tokenizer.vocab_size} tokens and the model was trained with 32000"):
        model_session(FakeProgram(make_card(vocab_size=32000)), tokenizer)


def test_packages_that_are_not_complete(tmp_path, tokenizer_model):
    with pytest.raises(PackageError, match="has no program"):
        Session.load(tmp_path)
    (tmp_path / "a.pte").write_bytes(b"")
    with pytest.raises(PackageError, match=r"no tokenizer\.model, no tokenizer\.bin, no tokenizer\.json"):
        Session.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model.read_bytes())
    with pytest.raises(PackageError, match=r"a\.pte is not an ExecuTorch program"):
        Session.load(tmp_path)
    (tmp_path / "b.pte").write_bytes(b"")
    with pytest.raises(PackageError, match=r"has 2 programs: a\.pte, b\.pte"):
        Session.load(tmp_path)


def test_a_forked_child_gets_an_error(tiny_pte, tokenizer_model):
    real = Session.load(tiny_pte, tokenizer=tokenizer_model)
    assert in_child(lambda: real.ask(None, "Hi")).startswith("RuntimeError: a session does not work in a forked child")
    loading = in_child(lambda: Session.load(tiny_pte, tokenizer=tokenizer_model))
    assert loading.startswith("RuntimeError: ExecuTorch does not work in a forked child")


def test_threads_that_load_leave_stderr_alone(tiny_pte, monkeypatch):
    """Otherwise the second takes the first one's substitute for stderr, and puts it back at its end."""
    waits = iter((0.05, 0.15))
    monkeypatch.setattr("llava_runner.program._set_threads", lambda *_: time.sleep(next(waits)))
    before = sys.stderr
    in_threads(lambda _: Program.open(tiny_pte), count=2)
    assert sys.stderr is before


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_without_stdout_or_stderr_it_runs(stream, tiny_pte, tokenizer_model, monkeypatch):
    """As in a service, or under ``pythonw``."""
    session = Session.load(tiny_pte, tokenizer=tokenizer_model)
    expected = session.ask(None, QUESTIONS[0], max_new_tokens=4)
    monkeypatch.setattr(f"sys.{stream}", None)
    assert session.ask(None, QUESTIONS[0], max_new_tokens=4) == expected
    monkeypatch.setattr(f"sys.{stream}", None)
    assert Session.load(tiny_pte, tokenizer=tokenizer_model).ask(None, QUESTIONS[0], max_new_tokens=4) == expected


def test_the_number_of_threads_changes_only_while_nothing_is_loaded(tiny_pte, tokenizer_model):
    """Otherwise a loaded program would compute with threads that are gone."""
    from executorch.extension.pybindings import _C as runtime

    session = Session.load(tiny_pte, tokenizer=tokenizer_model)
    running = runtime._threadpool_get_thread_count()
    Session.load(tiny_pte, tokenizer=tokenizer_model, cpu_threads=running).close()
    with pytest.raises(PromptError, match=f"computes with {running}, .* close its session first"):
        Session.load(tiny_pte, tokenizer=tokenizer_model, cpu_threads=running + 1)
    assert session.ask(None, "Hi", max_new_tokens=2)


@pytest.mark.parametrize("threads", [0, -1, 1025, 1.5, "2"])
def test_numbers_of_threads_that_are_not_possible(threads, tiny_pte):
    with pytest.raises(PromptError, match="cpu_threads "):
        Program.open(tiny_pte, cpu_threads=threads)
    with pytest.raises(PackageError, match="does not exist"):
        Program.open("nowhere.pte", cpu_threads=1)


def test_conversations_are_not_kept(make_session, tmp_path):
    session = make_session()
    session.ask(None, QUESTION, max_new_tokens=2)
    for call in (session.save, lambda: session.save(tmp_path / "kept"), lambda: session.restore(b"")):
        with pytest.raises(StateError, match='load the session with engine="cpp"'):
            call()
    assert list(tmp_path.iterdir()) == []
