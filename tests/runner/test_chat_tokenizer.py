"""Added tokens and other stops in a conversation."""

from __future__ import annotations

import pytest

from llava_runner.contract import GenerationDefaults, PromptTemplate, TokenizerRules
from llava_runner.errors import PackageError
from llava_runner.tokenizer_file import load_tokenizer
from tests.runner.fake_program import PLAIN_RULES, FakeProgram, added_token, make_card
from tests.runner.sessions import model_session

SEG, END, HIDDEN = 10, 11, 12
RULES = TokenizerRules(
    prepend_scheme="always",
    image_begins_text=False,
    adds_bos=True,
    added_tokens=(
        *PLAIN_RULES.added_tokens,
        added_token(SEG, "[SEG]"),
        added_token(END, "<|end|>", special=True, rstrip=True),
        added_token(HIDDEN, "<|think|>", special=True),
    ),
)
PHI = PromptTemplate(system="", user="<|end|>\nU ", assistant="<|end|>\nA", answer_end="<|end|>\n")


class Scripted(FakeProgram):
    """A model that says what a test wants, and keeps the ids that it reads."""

    def __init__(self, card, *answers):
        super().__init__(card)
        self.answers = [list(answer) for answer in answers]
        self.read: list[int] = []

    def embed(self, input_ids):
        self.read += input_ids
        return super().embed(input_ids)

    def _logits(self, inputs_embeds, position):
        logits = super()._logits(inputs_embeds, position)
        logits[:] = 0
        logits[-1, self.answers[0].pop(0)] = 1
        self.answers = [answer for answer in self.answers if answer]
        return logits


def make(tokenizer_model, *answers, **card):
    tokenizer = load_tokenizer(tokenizer_model)
    program = Scripted(make_card(vocab_size=tokenizer.vocab_size, rules=RULES, prompt=PHI, **card), *answers)
    return program, model_session(program, tokenizer)


def test_added_tokens_are_shown_and_special_ones_are_not(tokenizer_model):
    a, b = load_tokenizer(tokenizer_model).encode("it is")[:2]
    program, session = make(tokenizer_model, [a, SEG, b, HIDDEN, 2])
    text = "".join(session.chat("a [SEG] b"))
    assert text == session.last.text and text.count("[SEG]") == 1 and "<|" not in text
    assert session.last.stop_reason == "eos" and program.read.count(SEG) == 2  # of the question and of the answer


@pytest.mark.parametrize("stop", [2, END])
def test_any_end_stops_an_answer_and_the_template_spells_it(tokenizer_model, stop):
    tokenizer = load_tokenizer(tokenizer_model)
    a = tokenizer.encode("it")[0]
    program, session = make(tokenizer_model, [a, stop], [a, 2], eos_ids=(2, END))
    assert "".join(session.chat("first")) == tokenizer.decode_piece(a).decode().strip()
    read = len(program.read)
    list(session.chat("then"))
    # <|end|> takes the line end behind it, the next one the turn's own; the answer's own end is never read.
    begin = [END, END, *tokenizer.encode_pieces(" U then"), END]
    assert program.read[read : read + len(begin)] == begin


def test_an_answer_that_was_cut_short_is_closed_as_the_template_says(tokenizer_model):
    a = load_tokenizer(tokenizer_model).encode("it")[0]
    program, session = make(tokenizer_model, [a, a, a], [a, 2], eos_ids=(2, END))
    list(session.chat("first", max_new_tokens=3))
    read = len(program.read)
    list(session.chat("then"))
    assert program.read[read : read + 3] == [a, END, END]


def test_the_models_own_defaults_are_those_of_the_library(tokenizer_model):
    a = load_tokenizer(tokenizer_model).encode("it")[0]
    own = GenerationDefaults(temperature=0.9, top_p=0.5, max_new_tokens=3)
    _, session = make(tokenizer_model, [a] * 20, generation=own)
    list(session.generate(None, "hi"))
    assert session.last.stop_reason == "length" and len(session.last.ids) == 3
    list(session.generate(None, "hi", max_new_tokens=5))
    assert len(session.last.ids) == 5


def test_a_card_of_another_tokenizer_is_refused(tokenizer_model):
    tokenizer = load_tokenizer(tokenizer_model)
    card = make_card(vocab_size=tokenizer.vocab_size, tokenizer_vocab_size=tokenizer.vocab_size - 1)
    with pytest.raises(PackageError, match="use the tokenizer that was exported with it"):
        model_session(FakeProgram(card), tokenizer)
