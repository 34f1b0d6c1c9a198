"""One session used by several threads, cancelled, closed, and in a forked child."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from llava_runner.errors import PromptError
from tests.runner.sessions import conversation_of

QUESTIONS = ("What is in the image?", "How many shapes are there?", "What color is the circle?", "Is it green?")


class Pace:
    """How fast answers are computed.

    Other threads run during each token, as they do in a model of real size. Where ``stops`` is set, ``stopped`` is set
    in the sixth token of an answer, which goes on when ``stops`` is cleared.
    """

    def __init__(self):
        self.stops, self.stopped = threading.Event(), threading.Event()

    def wait(self, session):
        time.sleep(0.0005)
        if len(session.last.ids) == 5:
            while self.stops.is_set():
                self.stopped.set()
                time.sleep(0.001)


@pytest.fixture
def pace():
    return Pace()


@pytest.fixture
def session(make_session, pace, monkeypatch):
    session = make_session()
    conversation = conversation_of(session)
    compute = conversation.next
    monkeypatch.setattr(conversation, "next", lambda: (pace.wait(session), compute())[1])
    return session


def in_threads(work, count=20):
    """Call ``work`` with 0 to ``count`` - 1, each in a thread of its own. Return the results."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


@pytest.fixture
def expected(session):
    return [session.ask(None, question, max_new_tokens=8) for question in QUESTIONS]


def test_threads_that_ask_get_their_own_answers(session, expected):
    def work(index):
        return [session.ask(None, QUESTIONS[(index + i) % 4], max_new_tokens=8) for i in range(4)]

    for index, answers in enumerate(in_threads(work)):
        assert answers == [expected[(index + i) % 4] for i in range(4)]


def test_threads_that_generate_get_right_answers_or_an_error(session, expected):
    def work(index):
        try:
            return "".join(session.generate(None, QUESTIONS[index % 4], max_new_tokens=8))
        except RuntimeError as error:
            assert "given up" in str(error)
            return None

    results = in_threads(work)
    assert all(text in (None, expected[index % 4]) for index, text in enumerate(results))
    assert any(results)


def test_threads_that_reset_and_chat_leave_a_whole_conversation(session, expected):
    def work(index):
        with suppress(RuntimeError, PromptError):  # given up, or full
            session.reset() if index % 2 else "".join(session.chat(QUESTIONS[0], max_new_tokens=3))

    in_threads(work)
    assert session.ask(None, QUESTIONS[1], max_new_tokens=8) == expected[1]


def test_an_answer_that_has_ended_needs_the_session_no_more(session, expected):
    pieces = session.generate(None, QUESTIONS[0], max_new_tokens=8)
    text = ""
    while session.last.stop_reason is None:
        text += next(pieces)
    session.reset()
    assert text + "".join(pieces) == expected[0]


def test_the_newest_answer_is_kept_as_it_is(session):
    assert (session.last.ids, session.last.text, session.last.stop_reason) == ((), "", None)
    pieces = session.generate(None, QUESTIONS[0], max_new_tokens=6)
    next(pieces)
    early = session.last
    assert early.stop_reason is None and 1 <= len(early.ids) < 6
    rest = "".join(pieces)
    answer = session.last
    assert (len(answer.ids), answer.text, answer.stop_reason) == (6, early.text + rest, "length")
    assert answer.ids[: len(early.ids)] == early.ids and early.timings.sample.count == len(early.ids)
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.text = ""
    session.close()
    assert session.last == answer


def test_position_and_room(session):
    context = session.card.max_context_len
    assert (session.position, session.room) == (0, context)
    session.ask(None, QUESTIONS[0], max_new_tokens=6)
    prompt = session.last.timings.prompt.count
    assert (session.position, session.room) == (prompt + 6, context - prompt - 6)
    list(session.chat("And?"))
    assert (session.position, session.room, session.last.stop_reason) == (context, 0, "context")
    session.reset()
    assert session.position == 0


@pytest.mark.parametrize("how", ["ask", "generate"])
def test_cancelling_ends_an_answer_without_an_exception(session, pace, how):
    whole = session.ask(None, QUESTIONS[0], max_new_tokens=100)
    pace.stops.set()
    with ThreadPoolExecutor(1) as pool:
        if how == "ask":
            reader = pool.submit(session.ask, None, QUESTIONS[0])
        else:
            reader = pool.submit(lambda: "".join(session.generate(None, QUESTIONS[0])))
        pace.stopped.wait()
        session.cancel()
        pace.stops.clear()
        text = reader.result()
    assert (session.last.stop_reason, len(session.last.ids)) == ("cancelled", 6)
    assert session.last.text == text and whole.startswith(text)
    list(session.chat("And now?", max_new_tokens=3))
    assert session.last.stop_reason == "length"


def test_cancelling_before_the_first_token_and_after_the_last(session, expected):
    pieces = session.generate(None, QUESTIONS[0])
    session.cancel()
    assert list(pieces) == [] and session.last.stop_reason == "cancelled"
    assert session.ask(None, QUESTIONS[0], max_new_tokens=8) == expected[0]
    session.cancel()
    assert session.last.stop_reason == "length"
    assert session.ask(None, QUESTIONS[1], max_new_tokens=8) == expected[1]


def test_a_closed_session_says_so_and_frees_the_model(session):
    with session as same:
        assert same is session
        pieces = session.generate(None, QUESTIONS[0])
        next(pieces)
        assert repr(session) == f"<Session with fake, {session.position} of 128 positions>"
    calls = [
        lambda: next(pieces),
        lambda: session.ask(None, "Hi"),
        lambda: session.generate(None, "Hi"),
        lambda: session.chat("Hi"),
        session.reset,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="the session is closed"):
            call()
    assert repr(session) == "<Session with fake, closed>"
    session.close()
    session.cancel()


def test_closing_does_not_wait_for_the_end_of_an_answer(session, pace):
    pace.stops.set()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(session.ask, None, QUESTIONS[0])
        pace.stopped.wait()
        threading.Timer(0.05, pace.stops.clear).start()
        session.close()
        assert reader.result() == session.last.text
    assert (session.last.stop_reason, len(session.last.ids)) == ("cancelled", 6)


def in_child(work) -> str:
    """Return what ``work`` raises in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            work()
            os.write(writer, b"nothing")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    os.waitpid(child, 0)
    return text


def test_a_forked_child_gets_an_error(session):
    with ThreadPoolExecutor(1) as pool:  # which holds the lock while the child is made
        pool.submit(session.ask, None, QUESTIONS[0])
        for call in (lambda: session.ask(None, "Hi"), session.reset, lambda: session.chat("Hi")):
            assert in_child(call).startswith("RuntimeError: a session does not work in a forked child")
        assert in_child(session.close) == in_child(lambda: repr(session)) == "nothing"


def test_an_answer_is_given_up_where_the_next_one_is_interrupted(session, monkeypatch):
    conversation = conversation_of(session)
    begin = conversation.begin

    def begin_and_interrupt(*arguments, **options):
        begin(*arguments, **options)
        raise KeyboardInterrupt

    pieces = session.generate(None, QUESTIONS[0])
    with pytest.raises(PromptError):
        session.chat("")
    next(pieces)  # a mistake of the user changes nothing
    monkeypatch.setattr(conversation, "begin", begin_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.chat(QUESTIONS[1])
    with pytest.raises(RuntimeError, match="given up"):
        next(pieces)
