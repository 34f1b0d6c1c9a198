"""The official client, unchanged, on a server that listens."""

from __future__ import annotations

import openai
import pytest

from tests.runner.serve.conftest import CONTEXT, assistant, data_url, image_file, user


@pytest.fixture
def make_openai(make_live):
    """Return a function that makes OpenAI's client of a server, with the options of ``make_app``."""

    def make(*, key="no-key", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=make_live(**options).url + "v1", api_key=key, max_retries=0)

    return make


@pytest.mark.parametrize("is_streamed", [False, True])
def test_turns_with_images_are_answered_as_by_the_runner(make_openai, make_session, is_streamed):
    client, session = make_openai(max_context_len=CONTEXT), make_session(max_context_len=CONTEXT)
    messages = []
    for question, image in (("What is this?", 1), ("Is it red?", None), ("And this?", 2)):
        shown = None if image is None else image_file(image)
        expected = "".join(session.chat(question, image=shown, temperature=0, max_new_tokens=5))
        messages.append(user(question, *([] if image is None else [data_url(image)])))
        options = {"model": "any", "messages": messages, "temperature": 0, "max_tokens": 5}
        if is_streamed:
            usage = {"include_usage": True}
            *chunks, last = client.chat.completions.create(**options, stream=True, stream_options=usage)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
            assert chunks[-1].choices[0].finish_reason == "length"
        else:
            last = client.chat.completions.create(**options)
            assert last.choices[0].message.content == expected
        assert last.usage and last.usage.completion_tokens == 5
        messages.append(assistant(expected))


def test_models_are_listed(make_openai):
    client = make_openai()
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_mistakes_are_the_clients_own_errors(make_openai):
    client = make_openai(key="right", api_key="right")
    with pytest.raises(openai.BadRequestError, match="n is not supported") as raised:
        client.chat.completions.create(model="any", messages=[user("Hi")], n=2)
    assert (raised.value.param, raised.value.code) == ("n", "unsupported_parameter")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
