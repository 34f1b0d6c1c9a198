"""A small model that guesses what a large one will say, in the Python runner."""

from __future__ import annotations

import pytest

from llava_runner import cli
from llava_runner.draft_model import DraftModel, find_draft
from llava_runner.errors import PackageError
from llava_runner.model import greedy
from llava_runner.model_conversation import ModelConversation
from llava_runner.program import Program
from llava_runner.serve import cli as serve_cli
from llava_runner.session import Session
from llava_runner.tokenizer_file import load_tokenizer
from tests.runner.conftest import train_tokenizer
from tests.runner.fake_program import FakeProgram, make_card
from tests.runner.test_session import IMAGE, QUESTION

CONVERSATIONS = [[1, 5, 9], [1, 5, 9, 7, 7, 8], [1, 5, 9, 7], [1, 5, 9, 7], [1, 4, 9, 7, 3], [1], [6, 5], [1, 5, 9, 7]]


class CountedProgram(FakeProgram):
    rows_read = 0

    def decode(self, inputs_embeds, *, position):
        self.rows_read += inputs_embeds.shape[1]
        return super().decode(inputs_embeds, position=position)


def greedy_ids(model, ids, count):
    """Return the tokens that a model says after a text that it reads as a whole."""
    return [token_id for token_id, _ in greedy(model, model.embed(ids), max_tokens=count)]


def test_a_guess_is_what_the_model_would_say_itself():
    card = make_card(vocab_size=30)
    draft = DraftModel(CountedProgram(card), vocab_size=30)
    for ids in CONVERSATIONS:
        for most in (1, 4):
            assert draft.guess(ids, most) == greedy_ids(FakeProgram(card), ids, most)


def test_only_what_differs_is_read():
    model = CountedProgram(make_card(vocab_size=30))
    draft = DraftModel(model, vocab_size=30)
    guessed = draft.guess([1, 5, 9], 4)  # the last of these is not read
    assert model.rows_read == 6
    draft.guess([1, 5, 9, *guessed[:2]], 1)  # right so far: the newest gives the logits
    assert model.rows_read == 7
    draft.guess([1, 5, 9, guessed[0], 29, 28], 1)
    assert model.rows_read == 9


def test_a_guess_needs_room_and_tokens_that_both_know():
    card = make_card(vocab_size=30, max_seq_len=10, max_context_len=10)
    for vocab_size in (20, 30):
        draft = DraftModel(FakeProgram(card), vocab_size=vocab_size)
        assert len(draft.guess([1] * 6, 5)) == len(draft.guess([1] * 6, 4)) == 4
        assert draft.guess([1] * 10, 1) == []
        assert all(token_id < vocab_size for token_id in draft.guess([1, 2, 3], 7))
        assert draft.guess([1, 2], 0) == []
        assert bool(draft.guess([1, 25], 1)) is (vocab_size == 30)
    padded = make_card(vocab_size=30, tokenizer_vocab_size=12)
    assert max(DraftModel(FakeProgram(padded), vocab_size=30).guess([1], 20)) < 12


def test_a_guess_that_is_interrupted_is_forgotten():
    card = make_card(vocab_size=30)
    model = FakeProgram(card)
    draft = DraftModel(model, vocab_size=30)
    for ids in CONVERSATIONS:
        model.interrupt_next = True
        with pytest.raises(KeyboardInterrupt):
            draft.guess([*ids, 3, 3], 2)
        assert draft.guess(ids, 2) == greedy_ids(FakeProgram(card), ids, 2)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.2, "seed": 3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("image", [None, IMAGE], ids=["text", "image"])
def test_answers_are_those_without_a_draft(image, options, tokenizer):
    card = make_card(vocab_size=tokenizer.vocab_size, logits_to_keep=16, max_context_len=400, max_seq_len=400)
    draft = DraftModel(FakeProgram(card, repeats=True), vocab_size=tokenizer.vocab_size)
    plain, drafted = (
        Session(ModelConversation(FakeProgram(card, repeats=True), tokenizer=tokenizer, draft=each))
        for each in (None, draft)
    )
    for question in (QUESTION, "And what color?", "Why?"):
        for session, draft_max in ((plain, 0), (drafted, 7)):
            list(session.chat(question, image=image, max_new_tokens=30, draft_max=draft_max, **options))
        assert drafted.last.ids == plain.last.ids and drafted.position == plain.position
        timings = drafted.last.timings
        assert timings.drafted >= timings.accepted > 0
        if image is None and not options:  # the draft sees all that the model sees
            assert timings.drafted == timings.accepted


def test_two_programs_in_one_process_keep_their_caches_apart(tiny_pte):
    both = [Program.open(tiny_pte) for _ in range(2)]
    texts = [[1, 5, 9, 30, 17], [1, 200, 3, 8, 40]]
    expected = [greedy_ids(Program.open(tiny_pte), ids, 5) for ids in texts]
    assert expected[0] != expected[1]
    running = [greedy(model, model.embed(ids), max_tokens=5) for model, ids in zip(both, texts, strict=True)]
    found = list(zip(*running, strict=True))  # a token of one, a token of the other, and so on
    assert [[step[i][0] for step in found] for i in range(2)] == expected


def test_a_package_drafts_for_itself(package):
    """Without an image each of its guesses is right. The program checks three at a time."""
    plain = Session.load(package, engine="python")
    with Session.load(package, engine="python", draft_model_path=package) as session:
        for question in (QUESTION, "Why?"):
            for each in (plain, session):
                list(each.chat(question, max_new_tokens=12))
            assert session.last.ids == plain.last.ids
            assert session.last.timings.drafted == session.last.timings.accepted > 6


def test_a_tokenizer_of_another_vocabulary_is_refused_by_its_first_token(package, tokenizer_model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "llava.pte").write_bytes((package / "llava.pte").read_bytes())
    train_tokenizer(other / "tokenizer.model", vocab_size=410)
    ours, theirs = (load_tokenizer(path / "tokenizer.model") for path in (package, other))
    differs = next(i for i in range(410) if ours.decode_piece(i) != theirs.decode_piece(i))
    texts = [each.decode_piece(differs).decode() for each in (theirs, ours)]
    with pytest.raises(PackageError) as caught:
        find_draft(other, tokenizer=ours)
    assert str(caught.value) == (
        f"{other / 'llava.pte'} cannot draft for this model: its vocabulary is another, token {differs} is "
        f"'{texts[0]}' and not '{texts[1]}'; take a model with the same tokenizer"
    )


MISTAKES = {
    "nowhere": "nowhere does not exist",
    "empty": "empty has no program; a package has one .pte, or name the file itself",
    "text.txt": "text.txt is not an ExecuTorch program (.pte)",
    "alone/llava.pte": "alone has no tokenizer.model, no tokenizer.bin, no tokenizer.json",
}


@pytest.fixture(params=MISTAKES)
def mistake(request, package):
    """Return the path of what is no draft, and the reason."""
    folder = package.parent
    (folder / "empty").mkdir()
    (folder / "alone").mkdir()
    (folder / "alone" / "llava.pte").write_bytes((package / "llava.pte").read_bytes())
    (folder / "text.txt").write_text("This is no program, and long enough for a head of one.\n" * 2)
    return folder / request.param, f"{folder}/{MISTAKES[request.param]}"


def test_what_is_no_draft_is_refused(mistake, package, capsys):
    path, reason = mistake
    with pytest.raises(PackageError) as caught:
        Session.load(package, engine="python", draft_model_path=path)
    assert str(caught.value).startswith(reason)
    flag = f"--draft-model-path={path}"
    for command, flags in ((cli, [flag, "--prompt=What?"]), (serve_cli, [flag, "--port=0"])):
        with pytest.raises(SystemExit) as stop:
            command.main([str(package), *flags])
        told = capsys.readouterr()
        assert stop.value.code == 2 and told.out == "" and told.err == f"error: {caught.value}\n"
