"""Requests that cannot be answered: each has its status and an error in OpenAI's shape, and none is a 500."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import pytest

from llava_runner.serve import access
from llava_runner.serve.schema import MAX_BODY
from tests.runner.serve.conftest import assistant, data_url, user

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def png_of(width: int, height: int) -> str:
    """Return the URL of a small PNG file that says it has so many pixels."""
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk).decode()


def error_of(reply, status: int) -> dict:
    """Return the error of a reply with this status."""
    assert reply.status_code == status, reply.text
    (error,) = reply.json().values()
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    return error


REFUSED = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": [{**IMAGE, "image_url": "x"}]}]}, "messages[0].content[0].image_url"),
    ({"messages": [{"role": "user", "content": [IMAGE] * 65}]}, "messages[0].content"),
    ({"messages": [user("Hi", *["data:"] * 33)]}, "messages"),
    ({"messages": [user("Hi")] * 257}, "messages"),
    ({"messages": [user("")]}, "messages"),
    ({"messages": [user(" \n")]}, "messages"),
    ({"messages": [user("word " * 10_000)]}, "messages"),
    ({"messages": [user("a" * ((1 << 20) + 1))]}, "messages[0].content"),
    ({"messages": [assistant("Hi")]}, "messages[0].role"),
    ({"messages": [user("Hi"), user("Hi")]}, "messages[1].role"),
    ({"messages": [user("Hi"), assistant("Hi")]}, "messages"),
    ({"messages": [{"role": "system", "content": "Hi"}]}, "messages"),
    ({"messages": [user("Hi"), {"role": "system", "content": "Hi"}]}, "messages[1].role"),
    ({"messages": [{"role": "system", "content": [IMAGE]}, user("Hi")]}, "messages[0].content[0]"),
    ({"messages": [user("Hi", "https://example.com/a.png")]}, "messages"),
    ({"messages": [user("Hi", "file:///etc/passwd")]}, "messages"),
    ({"messages": [user("Hi", "/etc/passwd")]}, "messages"),
    ({"messages": [user("Hi", "data:image/png,AAAA")]}, "messages"),
    ({"messages": [user("Hi", "data:image/png;base64,!!!!")]}, "messages"),
    ({"messages": [user("Hi", "data:image/png;base64,AAAA")]}, "messages"),
    ({"messages": [user("Hi", data_url(side=1))]}, "messages"),
    ({"messages": [user("Hi", png_of(65536, 65536))]}, "messages"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"seed": 2**64}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": 1}, "stop"),
    ({"stop": "\ud800"}, "stop"),
    ({"stop": ["a", "b\0"]}, "stop"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"n": 2}, "n"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"logit_bias": {"1": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: repr(value)[:60])
def test_what_cannot_be_answered_is_refused_by_its_name(client, fields, param):
    body = json.dumps({"messages": [user("Hi")], **fields})
    reply = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = error_of(reply, 400)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_a_conversation_that_is_too_long_has_openais_code(client):
    for messages in ([user("word " * 10_000)], [user("Hi"), assistant("word " * 10_000), user("Hi")]):
        error = error_of(client.post("/v1/chat/completions", json={"messages": messages}), 400)
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "store": False, "metadata": {"a": "b"}, "parallel_tool_calls": True, "service_tier": "auto"},
        {"n": 1, "tools": [], "tool_choice": "auto", "presence_penalty": 0, "frequency_penalty": 0.0},
        {"logit_bias": None, "modalities": ["text"], "response_format": {"type": "text"}, "stop": None},
        {"model": "gpt-4o", "stream": False, "logprobs": False, "unknown": [[]]},
    ],
)
def test_fields_that_change_nothing_are_ignored(ask, fields):
    assert ask(user("Hi")).json()["choices"] == ask(user("Hi"), **fields).json()["choices"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"{'a': 1}", b'{"messages": [}', b"[" * 100_000, b"1" * 5000],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_json_object_is_refused(client, body):
    reply = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error_of(reply, 400)


def test_a_schema_of_many_levels_is_refused(client):
    schema: dict = {}
    for _ in range(70):
        schema = {"not": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    reply = client.post("/v1/chat/completions", json={"messages": [user("Hi")], "response_format": wanted})
    assert error_of(reply, 400)["param"] == "response_format"


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_of_another_type_is_refused(client, media_type):
    reply = client.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": media_type})
    error_of(reply, 415)


def test_a_body_that_is_too_large_is_refused(client, monkeypatch):
    headers = {"Content-Type": "application/json"}
    stated = {**headers, "Content-Length": str(MAX_BODY + 1)}
    error_of(client.post("/v1/chat/completions", content=b"{}", headers=stated), 413)
    monkeypatch.setattr(access, "MAX_BODY", 1000)  # and the same without a length, in pieces
    error_of(client.post("/v1/chat/completions", content=iter([b"a" * 600] * 2), headers=headers), 413)


def test_a_body_of_very_many_values_is_refused(client):
    body = b'{"messages": [' + b",".join([b"{}"] * 300_000) + b"]}"
    reply = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error_of(reply, 413)


@pytest.mark.parametrize(
    "path",
    ["/v1/chat", "/v1/nothing", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/page.js", "/%00"],
)
def test_other_paths_are_not_found(client, path):
    error_of(client.get(path), 404)
    error_of(client.post(path, json={}), 404)


def test_who_errs_in_the_path_is_told_what_there_is(client):
    error = error_of(client.post("/chat/completions", json={}), 404)  # a client whose base URL lacks /v1
    assert error["message"].startswith("there is nothing at /chat/completions; the API is POST /v1/chat/")
    assert error["type"] == "not_found_error"
    long = error_of(client.get("/%ed%a0%80" + "a" * 5000), 404)
    assert len(long["message"]) < 400
    assert "/openapi.json" in long["message"] and "/v1/models" in client.get("/openapi.json").json()["paths"]


def test_other_methods_are_refused(client):
    reply = client.get("/v1/chat/completions")
    assert error_of(reply, 405)["message"] == "GET is not possible at /v1/chat/completions, and POST is"
    assert reply.headers["Allow"] == "POST"
    assert "GET is" in error_of(client.delete("/v1/models"), 405)["message"]


def test_a_mistake_of_ours_is_told_without_its_details(make_app, monkeypatch):
    from starlette.testclient import TestClient

    served = make_app()
    monkeypatch.setattr(served.session, "chat", lambda *_, **__: 1 / 0)
    client = TestClient(served.app, base_url="http://localhost", raise_server_exceptions=False)
    error = error_of(client.post("/v1/chat/completions", json={"messages": [user("Hi")]}), 500)
    assert "division" not in error["message"]
