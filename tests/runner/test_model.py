import pytest
import torch

from llava_runner.model import greedy, most_likely
from tests.runner.fake_program import FakeProgram, make_card


@pytest.fixture
def model():
    return FakeProgram(make_card(vocab_size=50))


def answer(model, **options):
    """Return the tokens and the logits of an answer to a fixed prompt."""
    tokens, logits = zip(*greedy(model, model.embed([1, 7, 9]), **options), strict=True)
    return list(tokens), torch.stack(logits)


def test_each_token_follows_from_all_before_it(model):
    tokens, logits = answer(model, max_tokens=6)
    for i in range(6):
        expected = model.decode(model.embed([1, 7, 9, *tokens[:i]]), position=0)
        torch.testing.assert_close(logits[i], expected)
        assert tokens[i] == int(expected.argmax()) == most_likely(expected)


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_stops_at_max_tokens(model, max_tokens):
    longer, _ = answer(model, max_tokens=5)
    tokens, _ = answer(model, max_tokens=max_tokens)
    assert tokens == longer[:max_tokens]
    assert list(greedy(model, model.embed([1]), max_tokens=0)) == []


def test_stops_at_eos_and_yields_it(model):
    longer, _ = answer(model, max_tokens=6)
    eos = longer[3]
    tokens, _ = answer(model, max_tokens=6, eos_ids=(eos, 2))
    assert tokens == longer[: longer.index(eos) + 1]


def test_no_token_is_decoded_that_nobody_asked_for(model):
    tokens = greedy(model, model.embed([1, 7, 9]), max_tokens=5)
    model.calls = 0
    next(tokens)
    assert model.calls == 1


def test_choose_replaces_the_most_likely_token(model):
    chosen = iter([4, 5, 6])
    tokens, logits = answer(model, max_tokens=3, choose=lambda logits: next(chosen))
    assert tokens == [4, 5, 6]
    torch.testing.assert_close(logits[2], model.decode(model.embed([1, 7, 9, 4, 5]), position=0))
