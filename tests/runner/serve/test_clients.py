"""Clients that go away, are slow, or come while the server stops."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from llava_runner.serve import access, server
from tests.runner.serve.conftest import Live, assistant, user
from tests.runner.sessions import conversation_of

LONG = 20_000  # tokens that nobody waits for


@pytest.fixture
def live(make_live) -> Live:
    """Return a server whose answers are longer than anybody waits."""
    return make_live(max_context_len=LONG)


def begin(live: Live, text: str = "Hello?", **fields) -> HTTPConnection:
    """Ask, and return the connection on which the answer will come."""
    connection = HTTPConnection(urlsplit(live.url).netloc, timeout=30)
    body = json.dumps({"messages": [user(text)], "temperature": 0, **fields})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    return connection


def answer(connection: HTTPConnection) -> tuple[int, Any]:
    """Return the status and the text of an answer, or its error."""
    response = connection.getresponse()
    found = json.loads(response.read())
    return response.status, found["choices"][0]["message"]["content"] if "choices" in found else found


def wait_until(condition, seconds: float = 10) -> None:
    """Wait for something to happen."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_an_answer_stops_when_its_reader_is_gone(live):
    connection = begin(live, stream=True)
    response = connection.getresponse()
    response.readline()
    session = live.served.session
    wait_until(lambda: len(session.last.ids) > 5)
    response.close()
    connection.close()
    wait_until(lambda: session.last.stop_reason is not None)
    assert session.last.stop_reason == "cancelled"
    assert len(session.last.ids) < LONG / 2
    wait_until(lambda: not live.served.chat.worker.is_running)


def test_an_answer_stops_within_a_token_of_its_end(live, monkeypatch):
    """Each token takes so long here that it is known when the client went."""
    conversation = conversation_of(live.served.session)
    compute = conversation.next

    def compute_slowly():
        time.sleep(0.05)
        return compute()

    monkeypatch.setattr(conversation, "next", compute_slowly)
    connection = begin(live)
    session = live.served.session
    wait_until(lambda: len(session.last.ids) == 3)
    connection.close()
    wait_until(lambda: session.last.stop_reason is not None)
    assert len(session.last.ids) <= 4


def test_small_replies_do_not_wait_for_more():
    with server.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_client_that_waits_for_a_whole_answer_may_go_too(live):
    connection = begin(live)
    wait_until(lambda: len(live.served.session.last.ids) > 5)
    connection.close()
    wait_until(lambda: live.served.session.last.stop_reason == "cancelled")


def test_requests_wait_in_order_and_those_whose_client_goes_are_dropped(live, monkeypatch):
    worker, session = live.served.chat.worker, live.served.session
    chat, asked = session.chat, []

    def note(text, **options):
        asked.append(text)
        return chat(text, **options)

    monkeypatch.setattr(session, "chat", note)
    first = begin(live, "0")
    wait_until(lambda: worker.is_running)
    waiting = []
    for i in range(1, 5):
        waiting.append(begin(live, str(i), max_tokens=3))
        wait_until(lambda count=i: worker.waiting == count)
    waiting.pop(1).close()
    wait_until(lambda: worker.waiting == 3)
    first.close()
    assert [answer(connection)[0] for connection in waiting] == [200] * 3
    assert asked == ["0", "1", "3", "4"]
    assert 'status="499"} 1.0' in live.served.chat.metrics.text().decode()


@pytest.mark.parametrize("why", ["gone", "time"])
def test_earlier_turns_are_read_for_somebody_alone(live, monkeypatch, why):
    """The request's end comes while the second of them is read."""
    session, worker = live.served.session, live.served.chat.worker
    chat, go_on, asked = session.chat, threading.Event(), []

    def note(text, **options):
        asked.append(text)
        if len(asked) == 2:
            go_on.wait(20)
        return chat(text, **options)

    monkeypatch.setattr(session, "chat", note)
    messages = [*(each for i in range(5) for each in (user(str(i)), assistant("Yes."))), user("last")]
    connection = begin(live, messages=messages)
    wait_until(lambda: len(asked) == 2)
    if why == "gone":
        connection.close()
    else:
        worker.end(worker._running, why)
    wait_until(lambda: worker._running.ending == why)
    go_on.set()
    if why == "time":
        assert answer(connection)[0] == 503
    wait_until(lambda: not worker.is_running)
    assert asked == ["0", "1"]
    status, _ = answer(begin(live, messages=messages, max_tokens=3))  # goes on with what was read
    assert (status, asked[2:]) == (200, ["2", "3", "4", "last"])


def test_an_answer_that_takes_too_long_is_cut(make_live):
    live = make_live(max_context_len=LONG, seconds=0.5)
    begun = time.monotonic()
    status, text = answer(begin(live))
    assert (status, bool(text)) == (200, True)
    assert time.monotonic() - begun < 10


def test_a_request_that_waits_too_long_is_refused(make_live, monkeypatch):
    live = make_live(seconds=0.3)
    chat, go_on = live.served.session.chat, threading.Event()

    def wait(text, **options):
        go_on.wait(20)
        return chat(text, **options)

    monkeypatch.setattr(live.served.session, "chat", wait)
    running = begin(live)
    wait_until(lambda: live.served.chat.worker.is_running)
    status, error = answer(begin(live))
    assert (status, error["error"]["type"]) == (503, "server_error")
    go_on.set()
    assert answer(running)[0] == 200


def test_a_server_that_stops_refuses_who_waits_and_ends_what_runs(live):
    running = begin(live)
    wait_until(lambda: live.served.chat.worker.is_running)
    waiting = begin(live)
    wait_until(lambda: live.served.chat.worker.waiting == 1)
    live.server.should_exit = True
    status, error = answer(waiting)
    assert (status, error["error"]["message"]) == (503, "the server stops")
    live.served.chat.worker.end_running()  # which a second signal does
    status, text = answer(running)
    assert (status, bool(text)) == (200, True)


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"POST / HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_client_that_does_not_send_a_request_is_cut_off(make_live, monkeypatch, sent):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.2)
    with connected(make_live()) as stream:
        stream.sendall(sent)
        assert stream.recv(1) == b""


def test_a_client_that_does_not_send_its_body_is_told(make_live, monkeypatch):
    monkeypatch.setattr(access, "BODY_SECONDS", 0.2)
    with connected(make_live()) as stream:
        stream.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        assert stream.recv(1 << 16).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_its_answer_is_cut_off(make_live, monkeypatch):
    monkeypatch.setattr(server, "READ_SECONDS", 0.2)
    live = make_live(max_context_len=LONG, send_buffer=4096)
    connection = begin(live, stream=True, logprobs=True, top_logprobs=20)
    wait_until(lambda: live.served.chat.worker.is_running)
    wait_until(lambda: live.served.session.last.stop_reason == "cancelled")
    wait_until(lambda: not live.server.server_state.connections)
    connection.close()


def test_what_is_no_http_is_refused(make_live):
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000):
        with connected(make_live()) as stream:
            stream.sendall(sent)
            assert stream.recv(1 << 16)[:12] in (b"HTTP/1.1 400", b"")


def connected(live: Live) -> socket.socket:
    """Return a connection to a server."""
    parts = urlsplit(live.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=10)
