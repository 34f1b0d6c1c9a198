"""A server with the page's files and answers that are not computed. It can be busy, want a key, or break off."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

import llava_runner

PAGE = Path(llava_runner.__file__).parent / "serve" / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
PACKAGE: dict[str, Any] = {
    "model": "tiny-llava",
    "recipe": {"name": "8da4w", "vision": "8da8w", "embedding_bits": 8},
    "context": 512,
    "image_size": 64,
    "image_tokens": 64,
    "engine": "cpp",
    "version": "0.2.0",
    "program": "llava.pte",
    "verification": {"text": "6 files intact. <b>Not</b> bold.", "command": "llava verify demo", "can_verify": True},
}
TIMINGS = {
    "image_n": 64,
    "image_ms": 92.5,
    "prompt_n": 107,
    "prompt_ms": 317.4,
    "predicted_n": 16,
    "predicted_ms": 412.0,
}


class FakeServer(ThreadingHTTPServer):
    """The server. What it is told to do next is in its attributes, and what it was asked in ``requests``."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen on a free port, so that the browser keeps nothing from an earlier server."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.requests: list[dict[str, Any]] = []
        self.answer: str | None = None  # None: how many questions and images there were
        self.pause = 0.0  # seconds before each word
        self.key: str | None = None
        self.refusals: list[tuple[int, dict[str, str]]] = []  # status and headers of the next answers
        self.breaks_off = False  # after two words
        self.client_left = threading.Event()
        self.verdict = {"verdict": "PASS", "text": "image features  0.99998\n" + "token  0.99943 " * 40 + "\n\nPASS"}
        self.verifications = 0  # that were asked for
        self.may_verify = threading.Event()  # until then a verification does not end
        self.may_verify.set()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: FakeServer

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, status: int, value: object, **headers: str) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def is_allowed(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self.send_json(401, {"error": {"message": "an API key is needed", "type": "authentication_error"}})
        return False

    def do_GET(self) -> None:
        if self.path == "/package":
            if self.is_allowed():
                self.send_json(200, PACKAGE)
            return
        path = PAGE / (self.path.strip("/") or "index.html")
        if not path.is_file():
            self.send_json(404, {"error": {"message": "not found"}})
            return
        self.send(200, path.read_bytes(), Content_Type=TYPES[path.suffix], Content_Security_Policy=POLICY)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_allowed():
            return
        if self.server.refusals:
            status, headers = self.server.refusals.pop(0)
            self.send_json(status, {"error": {"message": f"refused with {status}"}}, **headers)
            return
        if self.path == "/package/verification":
            self.server.verifications += 1
            self.server.may_verify.wait(10)
            self.send_json(200, self.server.verdict)
            return
        self.server.requests.append(request)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for event in self.events(request):
                self.wfile.write(f"data: {event}\n\n".encode())
        except (BrokenPipeError, ConnectionResetError):
            self.server.client_left.set()

    def events(self, request: dict[str, Any]) -> Iterator[str]:
        """Yield the data of the events of an answer."""
        parts = [part for message in request["messages"] if message["role"] == "user" for part in message["content"]]
        images = sum(part["type"] == "image_url" for part in parts)
        text = self.server.answer or f"Questions: {len(parts) - images}, images: {images}."
        yield chunk({"role": "assistant", "content": ""})
        for number, word in enumerate(text.split(" ")):
            time.sleep(self.server.pause)
            if number == 2 and self.server.breaks_off:
                return
            yield chunk({"content": f" {word}" if number else word})
        yield chunk({}, finish_reason="stop")
        cached = 64 if len(request["messages"]) > 1 else 0
        usage = {
            "prompt_tokens": 107 + cached,
            "completion_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        timings = TIMINGS | ({"image_n": 0, "image_ms": 0, "prompt_n": 21, "prompt_ms": 38.2} if cached else {})
        yield json.dumps({"choices": [], "usage": usage, "timings": timings})
        yield "[DONE]"


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})


def sent_images(request: dict) -> list[Image.Image]:
    """Return the images of a request, in order."""
    parts = [part for message in request["messages"] if message["role"] == "user" for part in message["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Run a server in a thread, until the end of the ``with`` block."""
    server = FakeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
