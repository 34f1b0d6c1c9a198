"""Mutated requests, made from the server's own OpenAPI document: none is a 500, and replies are as it says."""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
EXAMPLES = int(os.environ.get("LLAVA_FUZZ_EXAMPLES", "15"))  # of each kind, for each route
OPTIONS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def document(make_app):
    """Return the server's document, as it gives it."""
    return schemathesis.openapi.from_asgi("/openapi.json", make_app().app)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=lambda mode: mode.value)
def test_no_request_is_a_mistake_of_ours(document, mode):
    operations = [found.ok() for found in document.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/models", "/health"}
    statuses = set()
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.method != "post":
            continue  # there is nothing that could be wrong

        @OPTIONS
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case):
            response = case.call()
            statuses.add(response.status_code)
            case.validate_response(response, checks=CHECKS)

        ask()
    assert statuses >= ({200} if mode is GenerationMode.POSITIVE else {400})
