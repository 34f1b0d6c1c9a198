"""What is drawn with guesses has the distribution that the model gives it, whether a guess is kept or not.

A guess that is one token for sure is to be kept with the probability that the model gives this token, and another token
is to be drawn as if it were not there (Leviathan et al., 2023; Chen et al., 2023). To draw and compare does both.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from llava_runner.contract import MAX_LOGITS_TO_KEEP, PromptTemplate
from llava_runner.draft_model import DraftModel
from llava_runner.model_conversation import ModelConversation
from llava_runner.sampler import Sampler
from llava_runner.session import Session
from tests.runner.fake_program import FakeProgram, make_card

LETTERS = "abcd"
# Its end comes before it, with each letter after it, and two more.
TEXT = "a b x a b c a b x b c d a b x c d a a b x d a b a b"
SEEDS = range(2000)
LARGEST = 4.0  # deviation; where every guess is kept, it is above 1000


class Letters(FakeProgram):
    """A model that says four letters. How likely each is depends on the two tokens before it."""

    def __init__(self, card, letter_ids):
        super().__init__(card)
        self.letter_ids = letter_ids
        self.table = torch.full((8, 8, card.vocab_size), -torch.inf)
        self.table[..., letter_ids] = torch.randn(8, 8, len(letter_ids), generator=torch.Generator().manual_seed(7))
        self.ids = torch.zeros(1 + card.max_context_len, dtype=torch.int64)  # a zero, and the context

    def embed(self, input_ids):
        return torch.tensor(input_ids).view(1, -1, 1)

    def _logits(self, inputs_embeds, position):
        end = position + inputs_embeds.shape[1]
        self.ids[position + 1 : end + 1] = newest = inputs_embeds[0, :, 0]
        return self.table[self.ids[position:end] % 8, newest % 8]


@pytest.fixture
def model(tokenizer):
    prompt = PromptTemplate(system="", user="", assistant=" x", image_separator="")
    card = make_card(vocab_size=tokenizer.vocab_size, logits_to_keep=MAX_LOGITS_TO_KEEP, prompt=prompt)
    ids = tokenizer.encode(" ".join(LETTERS))
    assert len(ids) == len({token_id % 8 for token_id in ids}) == len(LETTERS)
    return Letters(card, ids)


def expected(model, tokenizer, options):
    """Return the probability of each answer of three letters: the product of those of its tokens."""
    sampler = Sampler(**options)
    found = {}
    for letters in product(model.letter_ids, repeat=3):
        before, probability = tokenizer.encode("b x"), 1.0
        for token_id in letters:
            probability *= sampler.probabilities(model.table[before[-2] % 8, before[-1] % 8].numpy())[token_id]
            before.append(token_id)
        found[letters] = probability
    return found


def deviation(counts, probabilities):
    """Return how many standard deviations the chi-square statistic of answers is above its mean."""
    means = {letters: probability * len(SEEDS) for letters, probability in probabilities.items() if probability > 0}
    rare = [letters for letters, mean in means.items() if mean < 5]  # all of these count as one
    cells = [(counts[letters], mean) for letters, mean in means.items() if mean >= 5]
    cells.append((sum(counts[letters] for letters in rare), sum(means[letters] for letters in rare)))
    freedom = len(cells) - 1
    assert freedom > 10 and sum(mean for _, mean in cells) == pytest.approx(len(SEEDS))
    return (sum((count - mean) ** 2 / mean for count, mean in cells) - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}], ids=["all", "narrowed"])
@pytest.mark.parametrize("drafts", ["what was said", "another model"])
def test_samples_are_distributed_as_the_model_says(drafts, options, model, tokenizer):
    draft = None
    if drafts == "another model":
        other = Letters(model.card, model.letter_ids)
        other.table = other.table.roll(1, 0)
        draft = DraftModel(other, vocab_size=tokenizer.vocab_size)
    session = Session(ModelConversation(model, tokenizer=tokenizer, draft=draft))
    counts: Counter[tuple[int, ...]] = Counter()
    drafted = accepted = 0
    for seed in SEEDS:
        session.reset()
        list(session.chat(TEXT, max_new_tokens=4, seed=seed, **options))  # of the last, no guess is made
        answer = session.last
        counts[answer.ids[:3]] += 1
        drafted += answer.timings.drafted
        accepted += answer.timings.accepted
    assert drafted > len(SEEDS) and drafted / 20 < accepted < drafted * 19 / 20

    probabilities = expected(model, tokenizer, options)
    assert all(probabilities[letters] > 0 for letters in counts)  # what the sampler leaves out never comes
    assert deviation(counts, probabilities) < LARGEST
