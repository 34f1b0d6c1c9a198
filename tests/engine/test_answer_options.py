"""The options of an answer in the C interface."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import pytest

from llava_runner.engine import MISUSE, OK, STOP_REASONS
from llava_runner.engine_library import AnswerFields, AskOptions
from llava_runner.errors import PromptError
from tests.engine.test_c_interface import NEW_TOKENS, answer, asked


@pytest.mark.parametrize("options", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}])
def test_where_one_token_is_left_it_is_the_likeliest(options, engine, scenes):
    for scene in scenes[:10]:
        engine.reset()
        text = asked(engine, scene.content, scene.question, max_new_tokens=NEW_TOKENS, temperature=9.0, **options)
        assert text == scene.text


def test_a_penalty_is_for_the_whole_conversation(engine, scenes):
    scene = scenes[0]
    options = {"max_new_tokens": 8, "repetition_penalty": 1e6}
    taken: set[int] = set()
    engine.add_image(scene.content)
    for question in (scene.question, "How many?"):
        answer(engine, question, **options)
        ids = engine.last_ids()
        assert len(set(ids)) == len(ids) and not taken & set(ids)
        taken |= set(ids)


def test_log_probabilities_are_those_of_the_logits(engine, scenes):
    engine.add_image(scenes[0].content)
    engine.begin(scenes[0].question, max_new_tokens=5, logprobs=1, top_logprobs=3, temperature=2.0, has_seed=1, seed=7)
    token = 0
    while (logits := engine.logits()) is not None:
        expected = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
        engine.next()
        chosen, *likely = engine.last_logprobs(token)
        assert chosen[0] == engine.last_ids()[token]
        assert [id for id, _ in likely] == np.argsort(-expected, kind="stable")[:3].tolist()
        for id, logprob in (chosen, *likely):
            assert logprob == pytest.approx(expected[id], abs=1e-6)
        token += 1
    with pytest.raises(RuntimeError, match=f"the answer has no token {token}"):
        engine.last_logprobs(token)
    with pytest.raises(PromptError, match="logprobs 101"):
        engine.ask("What?", logprobs=1, top_logprobs=101)
    engine.ask("What?", max_new_tokens=1)
    assert engine.last_logprobs(0) == []


def test_guesses_change_no_answer_and_are_counted(engine):
    """What the logits allow is said again and again, so that guesses are right."""
    counts = {}
    for draft_max in (-1, 0, 3, 15):
        engine.reset()
        engine.begin("What?", max_new_tokens=40, draft_max=draft_max)
        while (logits := engine.logits()) is not None:
            logits[300 + engine.last().num_tokens % 5] = 1000
            engine.next()
        assert engine.last_ids() == [300 + i % 5 for i in range(40)]
        counts[draft_max] = engine.last().num_drafted, engine.last().num_accepted
    assert counts[-1] == (0, 0) and all(drafted >= accepted > 20 for drafted, accepted in list(counts.values())[1:])
    assert engine.last().eval.count == 39
    with pytest.raises(PromptError, match="draft_max 16: it must be from 0 to 15"):
        engine.ask("What?", draft_max=16)


def test_a_caller_of_an_older_version_gets_what_it_knows(engine):
    """Whose structures end before the fields that came later."""
    options = AskOptions(max_new_tokens=20, draft_max=99)
    options.struct_size = AskOptions.draft_max.offset
    assert engine._library.llava_begin(engine._number, b"What?", byref(options)) == OK
    while engine.next() is not None:
        pass
    fields = AnswerFields(num_drafted=-5)
    fields.struct_size = AnswerFields.num_drafted.offset
    assert engine._library.llava_last(engine._number, byref(fields)) == OK
    assert fields.num_tokens == engine.last().num_tokens > 0 and fields.num_drafted == -5


def test_one_token_must_be_left(engine):
    engine.begin("What?")
    engine.logits()[:] = -np.inf
    with pytest.raises(RuntimeError, match="all tokens are ruled out"):
        engine.next()
    engine.begin("What?", new_conversation=1)
    engine.logits()[1:] = -np.inf
    engine.next()
    assert engine.last_ids() == [0]


def test_an_answer_ends_before_a_stop_string(engine, scenes):
    for scene in [each for each in scenes if len(each.text) > 6][:10]:
        stop = scene.text[4:6]
        engine.reset()
        text = asked(engine, scene.content, scene.question, stops=["nowhere", stop])
        assert text == scene.text[: scene.text.index(stop)]
        assert STOP_REASONS[engine.last().stop_reason] == "stop"
        ids = engine.last_ids()
        assert ids == scene.ids[: len(ids)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k -1: it must be at least 0"),
        ({"min_p": 2.0}, "min_p 2: it must be from 0 to 1"),
        ({"repetition_penalty": -1.0}, "repetition_penalty -1: it must be above 0"),
        ({"stops": ["a", ""]}, "a stop string is empty"),
        ({"stops": ["a\0"]}, "a stop string has a zero byte, at byte 1"),
    ],
)
def test_mistakes_are_told(options, message, engine):
    with pytest.raises(PromptError, match=message):
        engine.ask("What?", **options)


def test_stop_strings_that_are_not_there_are_a_misuse(engine):
    for count in (-1, 1):
        options = AskOptions()
        options.num_stops = count
        options.stops = None
        assert engine._library.llava_begin(engine._number, b"What?", byref(options)) == MISUSE
