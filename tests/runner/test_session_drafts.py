"""Guesses of tokens make answers faster, and change none: with ``draft_max`` 0 nothing is guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runner.test_session import IMAGE, QUESTION

SECOND = "And what color?"
WAYS: dict[str, Any] = {
    "greedy": {},
    "sampled": {"temperature": 0.2, "seed": 1},
    "narrowed": {"temperature": 0.15, "seed": 5, "top_k": 20, "top_p": 0.95, "min_p": 0.01},
    "penalized": {"repetition_penalty": 1.2},
    "with probabilities": {"logprobs": 2, "temperature": 0.2, "seed": 2},
    "short of positions": {"seq_len": 90},
}


def counts(session):
    """Return how many tokens of the newest answer were guessed, and how many of these were right."""
    return session.last.timings.drafted, session.last.timings.accepted


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_those_without_guesses(make_session, way):
    plain = make_session(repeats=True)
    plain.ask(IMAGE, QUESTION, draft_max=0, **WAYS[way])
    expected = plain.last
    assert counts(plain) == (0, 0)
    right = 0
    for draft_max in (1, 2, 7, 15, None):
        session = make_session(repeats=True)
        session.ask(IMAGE, QUESTION, draft_max=draft_max, **WAYS[way])
        answer, (drafted, accepted) = session.last, counts(session)
        assert (answer.ids, answer.text) == (expected.ids, expected.text)
        assert (answer.stop_reason, session.position) == (expected.stop_reason, plain.position)
        assert drafted >= accepted
        right += accepted
        timings = answer.timings
        assert (timings.sample.count, timings.eval.count) == (len(answer.ids), len(answer.ids) - 1)
        for one, other in zip(answer.logprobs or (), expected.logprobs or (), strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert right > 0


def test_both_engines_guess_the_same(make_session):
    """So the numbers are here."""
    session = make_session(repeats=True)
    found = []
    for options in ({}, {"repetition_penalty": 1.2}, {"draft_max": 2}, {"repetition_penalty": 1.05}):
        session.ask(IMAGE, QUESTION, **options)
        found.append(counts(session))
    assert found == [(68, 68), (25, 25), (52, 52), (71, 60)]


@pytest.mark.parametrize("count", range(1, 10))
def test_no_guess_is_longer_than_the_answer_may_become(make_session, count):
    sessions = [make_session(repeats=True) for _ in range(2)]
    for session, draft_max in zip(sessions, (0, 7), strict=True):
        list(session.chat(QUESTION, image=IMAGE, max_new_tokens=30, draft_max=0))
        list(session.chat("What?", max_new_tokens=count, draft_max=draft_max))
        assert (len(session.last.ids), session.last.stop_reason) == (count, "length")
    plain, drafted = sessions
    assert drafted.last.ids == plain.last.ids and drafted.position == plain.position
    guessed, right = counts(drafted)
    assert guessed == right == 0 if count < 3 else 0 < right <= count - 2
    for session in sessions:
        list(session.chat(SECOND, max_new_tokens=9))
    assert drafted.last.ids == plain.last.ids


def test_a_full_context_ends_an_answer_with_its_last_position(make_session):
    for context in range(100, 108):
        sessions = [make_session(repeats=True, max_context_len=context, max_seq_len=64) for _ in range(2)]
        for session, draft_max in zip(sessions, (0, 15), strict=True):
            session.ask(IMAGE, QUESTION, draft_max=draft_max)
            assert (session.last.stop_reason, session.position) == ("context", context)
        assert sessions[0].last.ids == sessions[1].last.ids and counts(sessions[1])[1] > 20


def test_a_logits_processor_gets_each_tokens_own_logits(make_session):
    seen: list[list[tuple[list[int], np.ndarray]]] = []
    for draft_max in (0, 7):
        calls: list[tuple[list[int], np.ndarray]] = []

        def process(ids, logits, calls=calls):
            calls.append((list(ids), logits.copy()))
            if len(ids) % 11 == 10:
                logits[logits.argmax()] = -np.inf

        session = make_session(repeats=True)
        session.ask(IMAGE, QUESTION, logits_processor=process, draft_max=draft_max)
        seen.append(calls)
    drafted, accepted = counts(session)
    assert drafted > accepted > 10
    for (ids, logits), (same_ids, same_logits) in zip(*seen, strict=True):
        assert ids == same_ids
        np.testing.assert_allclose(logits, same_logits, atol=1e-5)


def give_up(session, pieces):
    pass


def cancel(session, pieces):
    session.cancel()
    list(pieces)
    assert session.last.stop_reason == "cancelled"


def replace(session, pieces):
    session.set_answer("There are 12 shapes.")


ENDS = {"given up": give_up, "cancelled": cancel, "replaced": replace}


@pytest.mark.parametrize("end", ENDS)
def test_a_conversation_goes_on_where_a_guess_was_cut(make_session, end):
    cut = 0
    for count in range(30, 38):
        sessions = [make_session(repeats=True) for _ in range(2)]
        for session, draft_max in zip(sessions, (0, 7), strict=True):
            pieces = session.chat(QUESTION, image=IMAGE, draft_max=draft_max)
            while len(session.last.ids) < count:
                next(pieces)
            drafted, accepted = counts(session)
            cut += drafted > accepted  # all guesses of this answer are right, see above
            ENDS[end](session, pieces)
            list(session.chat(SECOND, max_new_tokens=12, draft_max=draft_max))
        assert sessions[0].last.ids == sessions[1].last.ids
        assert sessions[0].position == sessions[1].position
    assert cut > 2


def test_a_stop_string_may_come_amid_a_guess(make_session):
    free = make_session(repeats=True)
    free.ask(IMAGE, QUESTION)
    text, cut = free.last.text, 0
    for length in range(12, 44, 4):  # longer than what is repeated, so that it first comes when that has been repeated
        stop = text[-length:]
        sessions = [make_session(repeats=True) for _ in range(2)]
        for session, draft_max in zip(sessions, (0, 7), strict=True):
            list(session.chat(QUESTION, image=IMAGE, stop=stop, draft_max=draft_max))
            assert session.last.stop_reason == "stop"
        plain, drafted = sessions
        assert (plain.last.ids, plain.last.text) == (drafted.last.ids, drafted.last.text)
        guessed, right = counts(drafted)
        cut += guessed > right
        for session in sessions:
            list(session.chat(SECOND, max_new_tokens=12))
        assert plain.last.ids == drafted.last.ids
    assert cut > 1


def test_a_guess_ends_where_an_answer_ended(make_session):
    free = make_session(repeats=True)
    free.ask(IMAGE, QUESTION)
    for eos in free.last.ids[-6:]:
        answers = []
        for draft_max in (0, 15):
            session = make_session(repeats=True, eos_ids=(2, eos))
            for _ in range(4):
                list(session.chat("What?", max_new_tokens=12, draft_max=draft_max))
                answers.append((session.last.ids, session.last.stop_reason, session.position))
                drafted, accepted = counts(session)
                assert drafted <= accepted + 1  # the end itself: the template spells another
        assert answers[:4] == answers[4:]


def test_a_program_that_gives_one_tokens_logits_checks_no_guess(make_session, tokenizer):
    loop = tokenizer.encode("There is a red circle")

    def repeat(ids, logits):
        logits[loop[len(ids) % len(loop)]] = 1000

    found = []
    for repeats in (False, True):
        session = make_session(repeats=repeats)
        assert session.card.logits_to_keep == (16 if repeats else 1)
        session.ask(IMAGE, QUESTION, max_new_tokens=40, logits_processor=repeat)
        assert session.last.ids == tuple(loop * 40)[:40]
        found.append(counts(session))
    assert found[0] == (0, 0) and found[1][1] > 20
