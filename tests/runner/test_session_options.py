"""What a session does with options of sampling, with stop strings, and with the probabilities of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from llava_runner.contract import GenerationDefaults
from llava_runner.errors import PromptError
from tests.runner.fake_program import FakeProgram
from tests.runner.sessions import has_not_run
from tests.runner.test_session import IMAGE, QUESTION, first_turn, reference_ids, rows_of, second_turn


def penalized_ids(session, *chunks, count, penalty):
    """Return greedy ids after ``chunks``, which are lists of ids or an image's features, as transformers penalizes."""
    program, processor = FakeProgram(session.card), RepetitionPenaltyLogitsProcessor(penalty)
    ids = [i for chunk in chunks if isinstance(chunk, list) for i in chunk]
    rows = [program.embed(chunk) if isinstance(chunk, list) else chunk for chunk in chunks]
    answer: list[int] = []
    for _ in range(count):
        logits = program.decode(torch.cat(rows, dim=1), position=0)
        answer.append(int(processor(torch.tensor([[*ids, *answer]]), logits.double().unsqueeze(0)).argmax()))
        rows.append(program.embed(answer[-1:]))
    return tuple(answer)


@pytest.mark.parametrize("penalty", [1.3, 0.6])
def test_the_penalty_is_for_the_tokens_of_the_whole_conversation(make_session, tokenizer, penalty):
    session = make_session()
    list(session.chat(QUESTION, image=IMAGE, max_new_tokens=12, repetition_penalty=penalty))
    before, _, after = first_turn(tokenizer)
    features = rows_of(FakeProgram(session.card), IMAGE)
    first = penalized_ids(session, before, features, after, count=12, penalty=penalty)
    assert session.last.ids == first != reference_ids(session, *first_turn(tokenizer), count=12)
    list(session.chat("And what color?", max_new_tokens=8, repetition_penalty=penalty))
    turn = second_turn(tokenizer, 2)
    expected = penalized_ids(session, before, features, after, list(first), turn, count=8, penalty=penalty)
    assert session.last.ids == expected
    list(session.generate(None, "Hello", max_new_tokens=8, repetition_penalty=penalty))  # all before is forgotten
    prompt = [1, *tokenizer.encode("Be kind. USER: Hello ASSISTANT:")]
    assert session.last.ids == penalized_ids(session, prompt, count=8, penalty=penalty)


def test_options_are_the_authors_unless_they_are_given(make_session):
    own = GenerationDefaults(0.8, 0.9, 6, top_k=5, min_p=0.05, repetition_penalty=1.2)
    options = dataclasses.asdict(own)
    plain, with_own = make_session(), make_session(generation=own)

    def ids(session, **given):
        list(session.generate(IMAGE, QUESTION, seed=3, **given))
        return session.last.ids

    assert ids(with_own) == ids(plain, **options)
    for name, value in {"top_k": 1, "min_p": 1.0, "repetition_penalty": 0.01}.items():
        assert ids(with_own, **{name: value}) == ids(plain, **{**options, name: value}) != ids(with_own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k -1: it must be at least 0"),
        ({"min_p": 2}, "min_p 2: it must be from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty 0: it must be above 0"),
        ({"stop": ["x", ""]}, "a stop string is empty"),
        ({"logprobs": -1}, "logprobs -1: it must be from 0 to 100"),
        ({"logprobs": 101}, "logprobs 101: it must be from 0 to 100"),
        ({"draft_max": -1}, "draft_max -1: it must be from 0 to 15"),
        ({"draft_max": 16}, "draft_max 16: it must be from 0 to 15"),
        ({"draft_max": 1.5}, "draft_max 1.5: it must be a whole number"),
    ],
)
def test_mistakes_are_raised_by_the_call_itself(make_session, options, message):
    session = make_session()
    for call in (session.generate, session.ask):
        with pytest.raises(PromptError, match=message):
            call(IMAGE, QUESTION, **options)
    with pytest.raises(PromptError, match=message):
        session.chat(QUESTION, **options)
    assert has_not_run(session)


@pytest.fixture
def free(make_session):
    """Return an answer of 16 tokens that nothing stops."""
    session = make_session()
    session.ask(IMAGE, QUESTION, max_new_tokens=16)
    return session.last


def test_an_answer_ends_before_a_stop_string(make_session, free, tokenizer):
    decode = tokenizer._processor.decode
    for begin in range(1, len(free.text) - 3, 3):
        stop = free.text[begin : begin + 3]
        if "\ufffd" in stop:
            continue
        session = make_session()
        pieces = list(session.chat(QUESTION, image=IMAGE, max_new_tokens=16, stop=["not there", stop]))
        answer, shown = session.last, free.text[: free.text.index(stop)]
        assert ("".join(pieces), answer.text, answer.stop_reason) == (shown, shown, "stop")
        assert answer.ids == free.ids[: len(answer.ids)] and stop in decode(list(answer.ids))
        assert stop not in decode(list(answer.ids[:-1]))
        list(session.chat("And what color?", max_new_tokens=5))  # the model has read all that it wrote
        turn = second_turn(tokenizer, 2)
        expected = reference_ids(session, *first_turn(tokenizer), answer.ids, turn, count=5)
        assert session.last.ids == expected


def test_text_that_was_held_back_is_shown_at_the_end(make_session, free):
    """By whatever the answer ends: its budget, the end-of-sequence token, or its cancellation."""
    stop = free.text[-4:] + "more"
    session = make_session()
    assert session.ask(IMAGE, QUESTION, max_new_tokens=16, stop=stop) == free.text
    assert session.last.stop_reason == "length"
    ended = make_session(eos_ids=(2, free.ids[-1]))
    last = ended.ask(IMAGE, QUESTION)
    assert ended.ask(IMAGE, QUESTION, stop=last[-2:] + "more") == last and ended.last.stop_reason == "eos"
    pieces = session.generate(IMAGE, QUESTION, stop=free.text[:5] + "more")
    assert session.last.text == ""
    session.cancel()
    assert "".join(pieces) == session.last.text and session.last.stop_reason == "cancelled"


def test_the_last_token_of_the_budget_may_complete_a_stop_string(make_session, free):
    session = make_session()
    session.ask(IMAGE, QUESTION, max_new_tokens=16, stop=free.text[-2:])
    count = len(session.last.ids)
    for budget in (count, count + 1):
        session.ask(IMAGE, QUESTION, max_new_tokens=budget, stop=free.text[-2:])
        assert (len(session.last.ids), session.last.stop_reason) == (count, "stop")


def test_logprobs_are_of_the_models_own_logits(make_session, tokenizer):
    session = make_session()
    session.ask(IMAGE, QUESTION, max_new_tokens=6)
    first = session.last
    assert first.logprobs is None
    options = {"temperature": 2.0, "top_k": 9, "repetition_penalty": 1.5, "seed": 1}
    pieces = session.chat("And what color?", max_new_tokens=6, logprobs=3, **options)
    answer = session.last
    assert answer.logprobs == ()
    list(pieces)
    answer, program = session.last, FakeProgram(session.card)
    assert [token.id for token in answer.logprobs] == list(answer.ids)
    context = [*first_turn(tokenizer), first.ids, second_turn(tokenizer, 2)]
    for i, token in enumerate(answer.logprobs):
        rows = rows_of(program, *context, *([answer.ids[:i]] if i else []))
        expected = program.decode(rows, position=0).double().log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-5)
        likeliest = expected.topk(3)
        assert [each.id for each in token.top] == likeliest.indices.tolist()
        np.testing.assert_allclose([each.logprob for each in token.top], likeliest.values, atol=1e-5)
    list(session.generate(IMAGE, QUESTION, max_new_tokens=2, logprobs=0))
    assert [token.top for token in session.last.logprobs] == [(), ()]


def test_a_logits_processor_may_rule_tokens_out(make_session, free):
    session, seen = make_session(), []

    def process(ids, logits):
        seen.append(list(ids))
        assert logits.shape == (session.card.vocab_size,) and logits.dtype == np.float32
        logits[list(free.ids[len(ids) : len(ids) + 1])] = -np.inf  # what would have been taken

    session.ask(IMAGE, QUESTION, max_new_tokens=6, logits_processor=process)
    ids = list(session.last.ids)
    assert seen == [ids[:i] for i in range(6)]
    assert not any(one == other for one, other in zip(ids, free.ids, strict=False))
    allowed = iter(free.ids)

    def allow_one(ids, logits):
        logit = logits[token := next(allowed)]
        logits[:], logits[token] = -np.inf, logit

    options = {"temperature": 5.0, "logprobs": 0}
    session.ask(IMAGE, QUESTION, max_new_tokens=6, logits_processor=allow_one, **options)
    assert session.last.ids == free.ids[:6]
    assert [token.logprob for token in session.last.logprobs] == [0.0] * 6


def test_a_processor_that_rules_all_out_or_raises_is_told(make_session, free):
    def rule_all_out(ids, logits):
        logits[:] = -np.inf

    def fail(ids, logits):
        raise ValueError("of the caller")

    session = make_session()
    with pytest.raises(RuntimeError, match="all tokens are ruled out"):
        session.ask(IMAGE, QUESTION, logits_processor=rule_all_out)
    with pytest.raises(ValueError, match="of the caller"):
        session.ask(IMAGE, QUESTION, logits_processor=fail)
    assert session.ask(IMAGE, QUESTION, max_new_tokens=16) == free.text
