"""Answers that are JSON, as ``response_format`` asks for."""

from __future__ import annotations

import json

from tests.runner.serve.conftest import data_url, user
from tests.runner.serve.test_chat import content


def test_an_answer_in_json_is_of_its_schema(ask):
    schema = {"type": "object", "properties": {"count": {"enum": [1, 2, 3]}}, "required": ["count"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "shapes", "schema": schema, "strict": True}}
    for options in ({}, {"temperature": 1, "seed": 1}):
        reply = ask(user("How many shapes?", data_url()), max_tokens=100, response_format=wanted, **options)
        assert json.loads(content(reply))["count"] in (1, 2, 3)
        assert reply.json()["choices"][0]["finish_reason"] == "stop"


def test_a_schema_that_cannot_be_followed_is_refused(ask):
    wanted = {"type": "json_schema", "json_schema": {"name": "no", "schema": {"type": "nothing"}}}
    reply = ask(user("Hi"), response_format=wanted)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
