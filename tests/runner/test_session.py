import numpy as np
import pytest
import torch
from PIL import Image

from llava_runner.errors import ImageError, PromptError
from llava_runner.image import preprocess
from tests.runner.fake_program import FakeProgram
from tests.runner.sessions import has_not_run

QUESTION = "What is in the image?"
IMAGE = Image.new("RGB", (30, 20), (200, 30, 60))


def rows_of(program, *chunks):
    """Return the rows ``[1, T, D]`` of chunks, which are lists of ids or images."""
    rows = []
    for chunk in chunks:
        if isinstance(chunk, Image.Image):
            card = program.card
            pixels = preprocess(chunk, image_size=card.image_size, image_mean=card.image_mean, image_aspect_ratio="pad")
            rows.append(program.encode_image(pixels))
        else:
            rows.append(program.embed(list(chunk)))
    return torch.cat(rows, dim=1)


def reference_ids(session, *chunks, count):
    """Return greedy ids after ``chunks``. Every token decodes the whole context."""
    program = FakeProgram(session.card)
    rows = rows_of(program, *chunks)
    ids: list[int] = []
    for _ in range(count):
        context = torch.cat([rows, program.embed(ids)], dim=1) if ids else rows
        ids.append(int(program.decode(context, position=0).argmax()))
    return tuple(ids)


def first_turn(tokenizer):
    return [[1, *tokenizer.encode("Be kind. USER: ")], IMAGE, tokenizer.encode(f"\n{QUESTION} ASSISTANT:")]


def test_answer_follows_the_prompt_around_the_image(make_session, tokenizer):
    session = make_session()
    text = "".join(session.generate(IMAGE, QUESTION, max_new_tokens=12))
    assert session.last.ids == reference_ids(session, *first_turn(tokenizer), count=12)
    assert text == tokenizer._processor.decode(list(session.last.ids))
    assert session.last.stop_reason == "length"


def test_answer_without_an_image(make_session, tokenizer):
    session = make_session()
    list(session.generate(None, QUESTION, max_new_tokens=5))
    prompt = [1, *tokenizer.encode(f"Be kind. USER: {QUESTION} ASSISTANT:")]
    assert session.last.ids == reference_ids(session, prompt, count=5)


def test_prompt_that_ends_with_the_image(make_session, tokenizer):
    session = make_session()
    list(session.generate(IMAGE, "<image>", max_new_tokens=3))
    assert session.last.ids == reference_ids(session, [1], IMAGE, count=3)


def test_every_call_of_generate_starts_afresh(make_session):
    session = make_session()
    answers = ["".join(session.generate(IMAGE, QUESTION, max_new_tokens=8)) for _ in range(2)]
    assert answers[0] == answers[1]


def test_image_as_object_file_tensor_and_array(make_session, tokenizer, tmp_path):
    session = make_session()
    IMAGE.save(tmp_path / "image.png")
    pixels = preprocess(IMAGE, image_size=28, image_mean=session.card.image_mean, image_aspect_ratio="pad")
    sources = [IMAGE, tmp_path / "image.png", str(tmp_path / "image.png"), pixels, torch.from_numpy(pixels)]
    answers = {"".join(session.generate(source, QUESTION, max_new_tokens=8)) for source in sources}
    assert len(answers) == 1
    list(session.generate(np.zeros_like(pixels), QUESTION, max_new_tokens=8))
    assert session.last.ids != reference_ids(session, *first_turn(tokenizer), count=8)


def test_image_aspect_ratio_stands_in_for_the_models_own(make_session):
    session = make_session()
    crop = preprocess(IMAGE, image_size=28, image_mean=session.card.image_mean, image_aspect_ratio="crop")
    list(session.generate(crop, QUESTION, max_new_tokens=6))
    expected = session.last.ids
    list(session.generate(IMAGE, QUESTION, max_new_tokens=6, image_aspect_ratio="crop"))
    assert session.last.ids == expected


def test_stops_at_eos_and_does_not_show_it(make_session, tokenizer):
    free = make_session()
    list(free.generate(IMAGE, QUESTION, max_new_tokens=6))
    eos = free.last.ids[4]
    session = make_session(eos_ids=(2, eos))
    text = "".join(session.generate(IMAGE, QUESTION))
    end = free.last.ids.index(eos)
    assert session.last.stop_reason == "eos"
    assert session.last.ids == free.last.ids[: end + 1]
    assert text == tokenizer._processor.decode(list(free.last.ids[:end]))


@pytest.mark.parametrize("limit", ["seq_len", "context"])
def test_prompt_and_answer_together_fill_the_limit(make_session, tokenizer, limit):
    prompt_len = sum(len(chunk) for chunk in first_turn(tokenizer)[::2]) + 4
    seq_len = prompt_len + 7
    session = make_session(max_context_len=seq_len if limit == "context" else 128, max_seq_len=8)
    list(session.generate(IMAGE, QUESTION, seq_len=seq_len))
    assert len(session.last.ids) == 7
    assert session.last.stop_reason == ("context" if limit == "context" else "length")


def test_prompt_that_does_not_fit_gives_the_numbers_before_anything_runs(make_session, tokenizer):
    prompt_len = sum(len(chunk) for chunk in first_turn(tokenizer)[::2]) + 4
    session = make_session()
    message = rf"takes {prompt_len} positions \(4 of them the image\) .* limit is {prompt_len}"
    with pytest.raises(PromptError, match=message):
        session.generate(IMAGE, QUESTION, seq_len=prompt_len)
    with pytest.raises(PromptError, match=r"takes \d{5,} positions .* limit is 128"):
        session.generate(IMAGE, "circle " * 10_000)
    assert has_not_run(session)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seq_len": 0}, PromptError, "seq_len 0: it must be from 1 to the context, 128"),
        ({"seq_len": 129}, PromptError, "seq_len 129"),
        ({"max_new_tokens": 0}, PromptError, "max_new_tokens 0"),
        ({"temperature": -1}, PromptError, "temperature -1"),
        ({"top_p": 0}, PromptError, "top_p 0"),
        ({"prompt": " "}, PromptError, "empty"),
        ({"max_new_tokens": 1.5}, PromptError, "max_new_tokens 1.5: it must be a whole number"),
        ({"seq_len": "100"}, PromptError, "seq_len '100': it must be a whole number"),
        ({"temperature": "hot"}, PromptError, "temperature 'hot': it must be a number"),
        ({"prompt": None}, PromptError, "the prompt is NoneType, and must be text"),
        ({"image": "nowhere.png"}, ImageError, "does not exist"),
    ],
)
def test_mistakes_are_raised_by_the_call_itself(make_session, options, error, message):
    session = make_session()
    arguments = {"image": IMAGE, "prompt": QUESTION, **options}
    with pytest.raises(error, match=message):
        session.generate(**arguments)
    assert has_not_run(session)


def test_a_seed_repeats_an_answer(make_session):
    session = make_session()

    def ids(seed):
        list(session.generate(IMAGE, QUESTION, max_new_tokens=10, temperature=2.0, top_p=0.95, seed=seed))
        return session.last.ids

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)


def second_turn(tokenizer, eos):
    return [eos, *tokenizer.encode("USER: And what color? ASSISTANT:")]


def test_chat_continues_after_an_answer_that_ended(make_session, tokenizer):
    free = make_session()
    list(free.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    eos = free.last.ids[3]
    session = make_session(eos_ids=(eos,))
    list(session.chat(QUESTION, image=IMAGE))
    answer = session.last.ids
    assert answer[-1] == eos
    list(session.chat("And what color?", max_new_tokens=5))
    expected = reference_ids(session, *first_turn(tokenizer), answer[:-1], second_turn(tokenizer, 2), count=5)
    assert session.last.ids == expected[: len(session.last.ids)]


@pytest.mark.parametrize("taken", ["nothing", "some", "up to max_new_tokens"])
def test_chat_closes_an_answer_that_was_cut_short(make_session, tokenizer, taken):
    session = make_session()
    pieces = session.chat(QUESTION, image=IMAGE, max_new_tokens=6)
    if taken == "some":
        next(pieces)
        next(pieces)
    elif taken == "up to max_new_tokens":
        list(pieces)
    answer = session.last.ids
    list(session.chat("And what color?", max_new_tokens=5))
    expected = reference_ids(
        session, *first_turn(tokenizer), *([answer] if answer else []), second_turn(tokenizer, 2), count=5
    )
    assert session.last.ids == expected


def test_chat_with_an_image_in_a_later_turn(make_session, tokenizer):
    session = make_session()
    list(session.chat("Hello there", max_new_tokens=3))
    answer = session.last.ids
    list(session.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    expected = reference_ids(
        session,
        [1, *tokenizer.encode("Be kind. USER: Hello there ASSISTANT:"), *answer, 2, *tokenizer.encode("USER: ")],
        IMAGE,
        tokenizer.encode(f"\n{QUESTION} ASSISTANT:"),
        count=4,
    )
    assert session.last.ids == expected


def test_mistakes_leave_the_conversation_as_it_was(make_session):
    disturbed, calm = make_session(), make_session()
    for session in (disturbed, calm):
        list(session.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    with pytest.raises(PromptError, match=r"after the \d+ of the conversation so far"):
        disturbed.chat("circle " * 200)
    with pytest.raises(ImageError):
        disturbed.generate("nowhere.png", QUESTION)
    for session in (disturbed, calm):
        list(session.chat("And what color?", max_new_tokens=5))
    assert disturbed.last.ids == calm.last.ids


@pytest.mark.parametrize("is_set", [True, False])
def test_an_answer_is_part_of_the_conversation_so_far(make_session, tokenizer, is_set):
    """Also the part of it that the model has not read yet."""
    session = make_session()
    list(session.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    if is_set:
        session.set_answer("There are 12 shapes.")
    answer = len(tokenizer.encode("There are 12 shapes.")) if is_set else 4
    first = sum(len(chunk) for chunk in first_turn(tokenizer)[::2]) + 4
    assert session.position == first + answer
    question = "circle " * 200
    turn = [2, *tokenizer.encode(f"USER: {question} ASSISTANT:")]
    with pytest.raises(PromptError) as raised:
        session.chat(question)
    assert str(raised.value) == (
        f"the prompt takes {len(turn)} positions after the {first + answer} of the conversation so far and the answer "
        "needs at least 1, but the limit is 128; shorten it or start afresh"
    )


@pytest.mark.parametrize("started", [True, False])
def test_an_answer_given_up_cannot_go_on(make_session, started):
    session = make_session()
    old = session.chat(QUESTION, image=IMAGE)
    if started:
        next(old)
    new = session.chat("And what color?", max_new_tokens=5)
    with pytest.raises(RuntimeError, match="given up"):
        next(old)
    assert list(new)
    assert session.last.stop_reason == "length"


def test_reset_forgets_the_conversation(make_session):
    session = make_session()
    list(session.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    first = session.last.ids
    session.reset()
    list(session.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    assert session.last.ids == first


def test_timings_count_positions_and_tokens(make_session, tokenizer):
    session = make_session()
    list(session.generate(IMAGE, QUESTION, max_new_tokens=6))
    timings = session.last.timings
    assert timings.image.count == 4
    assert timings.prompt.count == sum(len(chunk) for chunk in first_turn(tokenizer)[::2]) + 4
    assert (timings.sample.count, timings.eval.count) == (6, 5)
    assert min(timings.image.ms, timings.prompt.ms, timings.sample.ms, timings.eval.ms) > 0


def test_a_text_may_stand_for_an_answer(make_session, tokenizer):
    for taken in (0, 3):
        session = make_session()
        pieces = session.chat(QUESTION, image=IMAGE, max_new_tokens=8)
        for _ in range(taken):
            next(pieces)
        session.set_answer("There are 12 shapes.")
        answer = session.last
        assert (answer.text, answer.stop_reason) == ("There are 12 shapes.", "eos")
        assert answer.ids == tuple(tokenizer.encode("There are 12 shapes."))
        with pytest.raises(RuntimeError, match="given up"):
            list(pieces)
        list(session.chat("And what color?", max_new_tokens=5))
        turn = second_turn(tokenizer, 2)
        assert session.last.ids == reference_ids(session, *first_turn(tokenizer), answer.ids, turn, count=5)


def test_a_text_that_cannot_stand_for_an_answer(make_session, tokenizer):
    session = make_session()
    with pytest.raises(PromptError, match="there is no answer that the text could stand for"):
        session.set_answer("A circle.")
    list(session.chat(QUESTION, image=IMAGE, max_new_tokens=4))
    answer = session.last
    prompt = sum(len(chunk) for chunk in first_turn(tokenizer)[::2]) + 4
    long = "circle " * 200
    with pytest.raises(PromptError) as raised:
        session.set_answer(long)
    assert str(raised.value) == (
        f"the given answer takes {len(tokenizer.encode(long))} positions after the {prompt} of the conversation so far "
        "and the next turn needs at least 1, but the limit is 128; shorten it or start afresh"
    )
    assert session.last == answer
    list(session.chat("And what color?", max_new_tokens=5))
    turn = second_turn(tokenizer, 2)
    assert session.last.ids == reference_ids(session, *first_turn(tokenizer), answer.ids, turn, count=5)
    session.set_answer("")
    list(session.chat("And what color?", max_new_tokens=5))
    expected = reference_ids(session, *first_turn(tokenizer), answer.ids, turn, turn, count=5)
    assert session.last.ids == expected
