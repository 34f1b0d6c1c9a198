"""A server on a model that is not real, asked without a socket."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.serve.access import Guard
from llava_runner.serve.answering import Answerer
from llava_runner.serve.app import create_app
from llava_runner.serve.chat import Chat
from llava_runner.serve.conversations import Conversations
from llava_runner.serve.images import ImageReader
from llava_runner.serve.page_files import PageFile
from llava_runner.serve.server import Server, listen, server_of, url_of
from llava_runner.serve.verification import Verification
from llava_runner.session import Session

CONTEXT = 512
PACKAGE = {"model": "fake"}
PAGE = {"index.html": PageFile(b"<!doctype html>", "text/html; charset=utf-8")}


def image_file(seed: int = 0, *, side: int = 28) -> bytes:
    """Return an image of noise as a file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(seed: int = 0, *, side: int = 28) -> str:
    """Return an image of noise as a URL."""
    return "data:image/png;base64," + base64.b64encode(image_file(seed, side=side)).decode()


def user(text: str, *urls: str) -> dict:
    """Return a message of the user, with images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}] if urls else text}


def assistant(text: str) -> dict:
    """Return an answer as a message."""
    return {"role": "assistant", "content": text}


@dataclass(frozen=True)
class Served:
    """An app, and what it answers with."""

    app: Guard
    chat: Chat
    session: Session


@dataclass(frozen=True)
class Live:
    """A server that listens."""

    url: str
    served: Served
    server: Server


@pytest.fixture
def make_app(make_session, tokenizer) -> Iterator[Callable[..., Served]]:
    """Return a function that makes an app, with a card with changed values, and the app's options."""
    chats = []

    def make(
        *,
        program=Path("llava.pte"),
        seconds=60.0,
        allows_remote=False,
        page=PAGE,
        api_key=None,
        most_requests=32,
        **card,
    ) -> Served:
        session = make_session(**card)
        answerer = Answerer(
            session, Conversations(session, most_bytes=64 << 20), ChatTokenizer.of(session.card, tokenizer)
        )
        images = ImageReader(session.card, allows_remote=allows_remote)
        verification = Verification(program, seconds=seconds)
        chat = Chat(answerer, images=images, verification=verification, seconds=seconds)
        chats.append(chat)
        app = create_app(
            chat,
            package=PACKAGE,
            page=page,
            hosts=frozenset({"localhost", "testserver"}),
            api_key=api_key,
            most_requests=most_requests,
        )
        return Served(app, chat, session)

    yield make
    for chat in chats:
        chat.close()


@pytest.fixture
def make_live(make_app) -> Iterator[Callable[..., Live]]:
    """Return a function that listens at a port of this machine, with the options of ``make_app``."""
    running = []

    def make(*, send_buffer=None, **options) -> Live:
        served = make_app(**options)
        listener = listen("127.0.0.1", 0)
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = server_of(served.app, served.chat)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return Live(url_of(listener), served, server)

    yield make
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def make_client(make_app) -> Callable[..., TestClient]:
    """Return a function that makes a client of an app, with the options of ``make_app``."""
    return lambda **options: TestClient(
        make_app(**options).app, base_url="http://localhost", raise_server_exceptions=False
    )


@pytest.fixture
def client(make_client) -> TestClient:
    """Return a client of an app whose model has a context of several turns."""
    return make_client(max_context_len=CONTEXT)


@pytest.fixture
def ask(client) -> Callable:
    """Return a function that asks for an answer of few tokens at temperature 0."""

    def ask(*messages, **fields):
        body = {"messages": list(messages), "temperature": 0, "max_tokens": 6, **fields}
        return client.post("/v1/chat/completions", json=body)

    return ask
