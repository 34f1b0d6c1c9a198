"""Which conversation a request goes on with, and how many are kept."""

from __future__ import annotations

import pytest

from llava_runner.errors import StateError
from llava_runner.serve.conversations import Conversations
from llava_runner.serve.turns import Dialogue, Question, Turn


class Remembering:
    """A session that only remembers what was asked, and saves states of 100 bytes."""

    stop_reason = "eos"

    def __init__(self):
        self.turns = []
        self.read = []
        self.states = []

    @property
    def last(self):
        return self

    @property
    def timings(self):
        class Stage:
            count, ms = 1, 1.0

        class Timings:
            prompt = image = Stage

        return Timings

    @property
    def text(self):
        return self.turns[-1][1]

    @property
    def position(self):
        return len(self.turns)

    def chat(self, question, *, image=None, **_):
        self.turns.append((question, f"Answer to {question}"))
        self.read.append(question)
        return iter([self.text])

    def set_answer(self, text):
        self.turns[-1] = (self.turns[-1][0], text)

    def save(self):
        self.states.append(list(self.turns))
        return str(len(self.states) - 1).zfill(100).encode()

    def restore(self, content):
        self.turns = list(self.states[int(content)])

    def reset(self):
        self.turns = []


@pytest.fixture
def session():
    return Remembering()


def ask(conversations, session, *questions):
    """Ask the last of some questions, after the answers to the others. Return what was read, and where it was found."""
    session.read = []
    past = tuple(Turn(Question(text), f"Answer to {text}") for text in questions[:-1])
    pieces, reading = conversations.begin(Dialogue(past, Question(questions[-1])))
    assert list(pieces) == [f"Answer to {questions[-1]}"]
    conversations.finish()
    assert [text for text, _ in session.turns] == list(questions)
    return session.read, reading.source


def test_a_request_goes_on_with_the_longest_beginning(session):
    conversations = Conversations(session, most_bytes=1000)
    assert ask(conversations, session, "a") == (["a"], "none")
    assert ask(conversations, session, "a", "b") == (["b"], "live")
    assert ask(conversations, session, "x") == (["x"], "none")
    assert ask(conversations, session, "a", "b", "c") == (["c"], "saved")
    assert ask(conversations, session, "x", "y") == (["y"], "saved")
    assert ask(conversations, session, "a", "z") == (["a", "z"], "none")
    assert ask(conversations, session, "a", "b", "c", "d") == (["d"], "saved")


def test_the_last_used_are_kept_within_the_bound(session):
    conversations = Conversations(session, most_bytes=200)
    for text in ("a", "b", "c", "d"):
        ask(conversations, session, text)
    assert (conversations.saved, conversations.bytes) == (2, 200)
    assert ask(conversations, session, "a", "a2") == (["a", "a2"], "none")
    assert ask(conversations, session, "d", "d2") == (["d2"], "saved")
    assert conversations.bytes <= 200


def test_a_question_that_is_asked_again_is_not_saved(session):
    conversations = Conversations(session, most_bytes=1000)
    for _ in range(2):
        ask(conversations, session, "a", "b")
    assert conversations.saved == 0


@pytest.mark.parametrize("most_bytes", [0, 99])
def test_states_that_do_not_fit_are_not_kept(session, most_bytes):
    conversations = Conversations(session, most_bytes=most_bytes)
    ask(conversations, session, "a")
    ask(conversations, session, "b")
    ask(conversations, session, "c")
    assert (conversations.saved, conversations.bytes) == (0, 0)
    assert len(session.states) <= 1  # they are not made again and again


def test_without_saving_the_past_is_read_again(session):
    def refuse(*_):
        raise StateError("not here")

    session.save = refuse
    conversations = Conversations(session, most_bytes=1000)
    ask(conversations, session, "a")
    ask(conversations, session, "b")
    assert ask(conversations, session, "a", "c") == (["a", "c"], "none")


def test_a_past_is_read_no_further_than_it_is_wanted(session):
    conversations = Conversations(session, most_bytes=1000)
    past = tuple(Turn(Question(text), f"Answer to {text}") for text in "abcd")

    def begin(most):
        session.read = []

        def check():
            if len(session.read) == most:
                raise TimeoutError

        return conversations.begin(Dialogue(past, Question("e")), before_turn=check)

    for most, read in ((0, []), (2, ["a", "b"]), (2, ["c", "d"]), (0, [])):
        with pytest.raises(TimeoutError):
            begin(most)
        assert session.read == read
    assert (begin(9)[1].source, session.read) == ("live", ["e"])
    assert [text for text, _ in session.turns] == list("abcde")


def test_after_a_failure_nothing_is_taken_for_known(session):
    conversations = Conversations(session, most_bytes=1000)
    ask(conversations, session, "a")
    chat, session.chat = session.chat, lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        conversations.begin(Dialogue((Turn(Question("a"), "Answer to a"),), Question("b")))
    session.chat = chat
    assert ask(conversations, session, "a", "b") == (["a", "b"], "none")
