"""Images on other hosts: only where they are allowed, and only from the public internet."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llava_runner.serve import download
from llava_runner.serve.refusal import Refusal
from tests.runner.serve.conftest import image_file, user
from tests.runner.serve.test_chat import GREEDY, content
from tests.runner.serve.test_refusals import error_of

SLOW = 0  # in place of a status: a byte now and then
PRIVATE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "192.168.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "fc00::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address):
    assert not download.is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_other_addresses_are_public(address):
    assert download.is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://localhost/a.png",
        "http://[::1]/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://user@1.1.1.1/a.png",
        "http://1.1.1.1:22/a.png",
        "https://1.1.1.1:80/a.png",
        "http:///a.png",
        "http://[::1/a.png",
        "http://1.1.1.1:port/a.png",
    ],
)
def test_urls_that_lead_elsewhere_are_refused(make_client, url):
    client = make_client(allows_remote=True)
    error = error_of(client.post("/v1/chat/completions", json={"messages": [user("Hi", url)]}), 400)
    assert error["param"] == "messages"


@pytest.fixture
def site(monkeypatch):
    """Return a function that makes a site with one answer at each path. Its name is that of a public address."""
    servers = []

    def make(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, body = answers[self.path]
                self.send_response(200 if status == SLOW else status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):  # the client may have gone
                    for piece in [bytes([byte]) for byte in body] if status == SLOW else [body]:
                        self.wfile.write(piece)
                        time.sleep(0.05 if status == SLOW else 0)

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        connect = socket.create_connection
        monkeypatch.setattr(socket, "getaddrinfo", _resolve)
        monkeypatch.setattr(
            socket, "create_connection", lambda address, **options: _connect(connect, address, server, options)
        )
        return "http://images.example"

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def _resolve(host, port, **_):
    """Resolve the names of the test: the public one, and one that leads to this machine."""
    address = {"images.example": "93.184.215.14", "inside.example": "127.0.0.1"}.get(host, host)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]


def _connect(connect, address, server, options):
    """Connect to the site in place of its public address."""
    assert address == ("93.184.215.14", 80)  # the address that was checked, not the name
    stream = socket.socket()
    stream.settimeout(options["timeout"])
    stream.connect(server.server_address)
    return stream


def test_an_image_of_a_public_host_is_seen(make_client, make_session, site):
    url = site({"/a.png": (200, {}, image_file(3)), "/b": (302, {"Location": "/a.png"}, b"")})
    client = make_client(allows_remote=True)
    expected = make_session().ask(image_file(3), "What is this?", **GREEDY)
    for path in ("/a.png", "/b"):
        body = {"messages": [user("What is this?", url + path)], "temperature": 0, "max_tokens": 6}
        assert content(client.post("/v1/chat/completions", json=body)) == expected


@pytest.mark.parametrize(
    "location", ["http://inside.example/a.png", "http://127.0.0.1/", "file:///etc/passwd", "//inside.example/", "/loop"]
)
def test_redirects_to_private_addresses_are_not_followed(site, location):
    url = site({"/loop": (302, {"Location": location}, b"")})
    with pytest.raises(Refusal):
        download.download(url + "/loop", max_bytes=1000)


def test_large_and_missing_files_are_refused(site):
    url = site({"/large": (200, {}, b"a" * 1001), "/none": (404, {}, b"")})
    for path in ("/large", "/none"):
        with pytest.raises(Refusal):
            download.download(url + path, max_bytes=1000)


def test_a_host_that_sends_slowly_is_given_up(site, monkeypatch):
    monkeypatch.setattr(download, "SECONDS", 0.3)
    url = site({"/slow": (SLOW, {}, b"a" * 100)})
    begun = time.monotonic()
    with pytest.raises(Refusal, match="too long"):
        download.download(url + "/slow", max_bytes=1000)
    assert time.monotonic() - begun < 3
