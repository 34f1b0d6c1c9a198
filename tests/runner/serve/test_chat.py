"""Answers of the server, compared with those of a session of the same model."""

from __future__ import annotations

import json

import pytest

from tests.runner.serve.conftest import CONTEXT, assistant, data_url, image_file, user

GREEDY = {"temperature": 0, "max_new_tokens": 6}


def content(reply) -> str:
    """Return the text of an answer."""
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def events(reply) -> list:
    """Return what a streamed answer's events hold."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert found.pop() == "[DONE]"
    return list(map(json.loads, found))


def test_an_answer_is_the_sessions_own(ask, make_session):
    reply = ask(user("What is in the image?", data_url()))
    session = make_session()
    text = session.ask(image_file(), "What is in the image?", **GREEDY)
    assert content(reply) == text
    found = reply.json()
    assert found["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert found["choices"][0]["finish_reason"] == "length"
    prompt = session.last.timings.prompt.count
    assert found["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 6,
        "total_tokens": prompt + 6,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (found["timings"]["prompt_n"], found["timings"]["image_n"]) == (prompt, session.card.num_image_tokens)


def test_several_images_and_texts_are_one_question(ask, make_session):
    parts = [
        {"type": "text", "text": "Which is larger?"},
        *user("", data_url(1), data_url(2))["content"][:2],
        {"type": "text", "text": "The red one?"},
    ]
    session = make_session()
    expected = session.ask([image_file(1), image_file(2)], "Which is larger?\nThe red one?", **GREEDY)
    assert content(ask({"role": "user", "content": parts})) == expected


def test_a_conversation_goes_on_without_reading_its_past(ask, make_session):
    session = make_session(max_context_len=CONTEXT)
    messages = []
    for question, image in (("What is this?", 1), ("Is it red?", None), ("And this?", 2), ("Why?", None)):
        urls = [] if image is None else [data_url(image)]
        shown = None if image is None else image_file(image)
        before = session.position
        expected = "".join(session.chat(question, image=shown, **GREEDY))
        messages.append(user(question, *urls))
        reply = ask(*messages)
        assert content(reply) == expected
        timings = session.last.timings
        assert reply.json()["timings"]["prompt_n"] == timings.prompt.count
        # The newest token of an answer is read with the next question.
        assert reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == max(0, before - 1)
        messages.append(assistant(expected))


def test_a_conversation_of_elsewhere_is_read(ask, make_session):
    session = make_session()
    list(zip(session.chat("What is this?", image=image_file(1)), (), strict=False))
    session.set_answer("It is a red circle.")
    expected = "".join(session.chat("Is it?", **GREEDY))
    messages = [user("What is this?", data_url(1)), assistant("It is a red circle."), user("Is it?")]
    first = ask(*messages)
    assert content(first) == expected
    assert first.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert first.json()["usage"]["prompt_tokens"] == first.json()["timings"]["prompt_n"]


def test_conversations_in_turn_are_not_mixed(ask, make_session):
    sessions = [make_session(max_context_len=CONTEXT) for _ in range(4)]
    messages: list[list] = [[] for _ in sessions]
    for turn in range(3):
        for i, session in enumerate(sessions):
            question = f"Is {turn} in image {i}?"
            image = None if turn else image_file(i)
            expected = "".join(session.chat(question, image=image, **GREEDY))
            session.set_answer(expected)  # neither engine can save this model: the server reads the text again
            messages[i].append(user(question, *([] if turn else [data_url(i)])))
            assert content(ask(*messages[i])) == expected
            messages[i].append(assistant(expected))


def test_a_question_asked_again_has_the_same_answer(ask):
    messages = [user("What is this?", data_url()), assistant("A circle."), user("Which color?")]
    first = content(ask(*messages))
    assert content(ask(*messages)) == first
    changed = [messages[0], assistant("A square."), messages[2]]
    assert content(ask(*changed)) != first
    assert content(ask(*messages)) == first


def test_system_messages_stand_before_the_first_question(ask, make_session):
    expected = make_session().ask(None, "Be brief.\n\nWho are you?", **GREEDY)
    for role in ("system", "developer"):
        assert content(ask({"role": role, "content": "Be brief."}, user("Who are you?"))) == expected


@pytest.mark.parametrize("usage", [False, True])
def test_a_streamed_answer_has_the_shape_and_text_of_a_whole_one(ask, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    whole = ask(user("What is this?", data_url())).json()
    role, *pieces, last = events(ask(user("What is this?", data_url()), stream=True, **options))
    if usage:
        assert last["choices"] == [] and last["usage"]["completion_tokens"] == 6
        assert all(chunk["usage"] is None for chunk in (role, *pieces))
        last = {**pieces.pop(), "timings": last["timings"]}
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in (role, *pieces, last)} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in (role, *pieces, last)}) == 1
    assert (
        "".join(chunk["choices"][0]["delta"]["content"] for chunk in pieces)
        == (whole["choices"][0]["message"]["content"])
    )
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")
    assert last["timings"].keys() == whole["timings"].keys()
    assert usage or not any("usage" in chunk for chunk in (role, *pieces, last))


def test_sampling_is_the_sessions_own(ask, make_session):
    options = {"temperature": 0.9, "top_p": 0.8, "top_k": 40, "seed": 7}
    expected = make_session().ask(None, "Hello?", max_new_tokens=6, **options)
    assert content(ask(user("Hello?"), **options)) == expected
    assert content(ask(user("Hello?"), **{**options, "seed": -1})) == make_session().ask(
        None, "Hello?", max_new_tokens=6, **{**options, "seed": 2**64 - 1}
    )


def test_an_answer_ends_before_a_stop_string(ask):
    text = content(ask(user("Hello?"), max_completion_tokens=12, max_tokens=None))
    stop = text[4:6]
    reply = ask(user("Hello?"), max_tokens=12, stop=stop)
    assert content(reply) == text.partition(stop)[0]
    assert reply.json()["choices"][0]["finish_reason"] == "stop"


def test_logprobs_are_the_sessions_own(ask, make_session, tokenizer):
    session = make_session()
    text = session.ask(None, "Hello?", logprobs=3, **GREEDY)
    reply = ask(user("Hello?"), logprobs=True, top_logprobs=3)
    assert content(reply) == text
    found = reply.json()["choices"][0]["logprobs"]["content"]
    assert [each["logprob"] for each in found] == pytest.approx([each.logprob for each in session.last.logprobs])
    assert [len(each["top_logprobs"]) for each in found] == [3] * 6
    assert b"".join(bytes(each["bytes"]) for each in found).decode(errors="replace").strip() == text.strip()
    streamed = [
        token
        for chunk in events(ask(user("Hello?"), logprobs=True, top_logprobs=3, stream=True))
        if (listed := chunk["choices"][0]["logprobs"])
        for token in listed["content"]
    ]
    assert streamed == found


def test_without_limits_the_context_ends_an_answer(ask):
    reply = ask(user("Hello?"), max_tokens=None)
    assert reply.json()["choices"][0]["finish_reason"] == "length"
    assert reply.json()["usage"]["total_tokens"] == CONTEXT


def test_a_photo_of_megabytes_is_taken(ask):
    url = data_url(side=1300)
    assert len(url) > 5_000_000
    content(ask(user("What is this?", url)))


def test_a_conversation_goes_on_as_if_the_stop_string_had_not_come(make_client):
    def ask(client, *messages, **fields):
        body = {"messages": list(messages), "temperature": 0, "max_tokens": 6, "logprobs": True, **fields}
        return client.post("/v1/chat/completions", json=body)

    client, other = make_client(max_context_len=CONTEXT), make_client(max_context_len=CONTEXT)
    stop = content(ask(client, user("What is in the image?")))[2:]
    answer = content(ask(client, user("What is in the image?"), stop=stop))
    replies = [
        ask(each, user("What is in the image?"), assistant(answer), user("And what else?")) for each in (client, other)
    ]
    live, fresh = (reply.json() for reply in replies)
    assert live["choices"][0]["message"] == fresh["choices"][0]["message"]
    assert live["usage"]["prompt_tokens"] == fresh["usage"]["prompt_tokens"]
