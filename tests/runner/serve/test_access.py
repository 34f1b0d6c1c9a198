"""Who may ask: hosts, pages of other sites, keys, and how many at a time."""

from __future__ import annotations

import pytest

from tests.runner.serve.conftest import user
from tests.runner.serve.test_refusals import error_of


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8080", "LOCALHOST", "127.0.0.1:8080", "[::1]", "[::1]:8080", "192.168.1.5"]
)
def test_addresses_and_names_of_this_machine_are_answered(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "evil.example:8080", "", "localhost:port", "[::1", "1.2.3.4.evil"],
)
def test_other_names_are_refused(client, host):
    assert error_of(client.get("/health", headers={"Host": host}), 403)["code"] == "host_not_allowed"


def test_the_own_page_is_answered(client):
    assert client.get("/health", headers={"Origin": "http://localhost"}).status_code == 200
    assert client.get("/health", headers={"Host": "localhost:99", "Origin": "http://localhost:99"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "http://localhost.evil.example"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_sites_are_refused(client, origin, method):
    reply = client.request(method, "/v1/chat/completions", headers={"Origin": origin})
    assert error_of(reply, 403)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in reply.headers


def test_with_a_key_only_the_page_and_health_are_open(make_client):
    client = make_client(api_key="sesame")
    for path in ("/", "/health"):
        assert client.get(path).status_code == 200
    for path in ("/v1/models", "/metrics", "/package", "/openapi.json", "/nothing"):
        assert error_of(client.get(path), 401)["code"] == "invalid_api_key"
        assert client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert client.get(path, headers={"Authorization": "sesame"}).status_code == 401
    right = {"Authorization": "Bearer sesame"}
    assert client.get("/v1/models", headers=right).status_code == 200
    reply = client.post("/v1/chat/completions", json={"messages": [user("Hi")], "max_tokens": 1}, headers=right)
    assert reply.status_code == 200


def test_every_reply_has_a_strict_content_policy(client):
    for path in ("/", "/health", "/nothing", "/metrics"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def test_more_requests_than_allowed_are_told_to_come_again(make_client):
    client = make_client(most_requests=0)
    reply = client.post("/v1/chat/completions", json={"messages": [user("Hi")]})
    assert error_of(reply, 429)["type"] == "rate_limit_error"
    assert reply.headers["retry-after"] == "5"
