"""Loads a package, listens, and answers until the process is told to end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from llava_runner.arguments import note_unused_draft, version_line
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.errors import PromptError
from llava_runner.program_file import find_program, find_tokenizer
from llava_runner.serve.access import Guard, own_names
from llava_runner.serve.answering import Answerer
from llava_runner.serve.app import create_app
from llava_runner.serve.chat import Chat
from llava_runner.serve.conversations import Conversations
from llava_runner.serve.images import ImageReader
from llava_runner.serve.page_files import page_files
from llava_runner.serve.verification import Verification, verification_of
from llava_runner.session import Session
from llava_runner.tokenizer_file import load_tokenizer

HEADER_SECONDS = 20.0  # for a client to send what comes before a body
READ_SECONDS = 60.0  # for a client to read on, once there is more than a connection holds
STOP_SECONDS = 30  # for the answer that is being made when the server is told to end
MOST_CONNECTIONS = 256
MAX_HEADERS = 64 << 10  # bytes


@dataclass(frozen=True)
class Settings:
    """How a package is served; ``llava serve --help`` explains the flags of these names."""

    host: str = "127.0.0.1"
    port: int = 8080
    tokenizer: Path | None = None
    draft_model_path: Path | None = None
    api_key: str | None = None
    allows_remote: bool = False
    threads: int | None = None
    engine: Any = None
    most_requests: int = 32
    seconds: float = 600.0
    saved_bytes: int = 1 << 30
    check: bool = False


class PatientProtocol(H11Protocol):
    """HTTP of uvicorn, for clients that send a request's head in time, and read what they asked for.

    The connection of others ends.
    """

    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._sending = self._abort_after(HEADER_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Take a part of a request. The rest of its head must come in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._sending = _ended(self._sending)
        elif self._sending is None:
            self._sending = self._abort_after(HEADER_SECONDS)

    def pause_writing(self) -> None:
        """Notice that the client does not read. It must go on in time."""
        super().pause_writing()
        self._reading = self._abort_after(READ_SECONDS)

    def resume_writing(self) -> None:
        """Notice that the client reads on."""
        super().resume_writing()
        self._reading = _ended(self._reading)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._sending, self._reading = _ended(self._sending), _ended(self._reading)
        super().connection_lost(exc)

    def _abort_after(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)


def _ended(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop a timer. Return what stands in its place: None."""
    if timer is not None:
        timer.cancel()
    return None


class Server(uvicorn.Server):
    """A server whose waiting requests are refused as soon as it is told to end. The running answer goes on."""

    def __init__(self, config: uvicorn.Config, chat: Chat) -> None:
        super().__init__(config)
        self._chat = chat

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and let what runs come to its end."""
        self._chat.worker.stop_taking()
        self._chat.verification.end()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal to end. A second one ends the running answer, too."""
        if self.should_exit:
            self._chat.worker.end_running()
        super().handle_exit(sig, frame)


def serve(package: Path, settings: Settings) -> None:
    """Answer requests to a package until SIGINT or SIGTERM. Raises ``UserError`` and ``OSError`` before it listens."""
    listener = listen(settings.host, settings.port)
    with listener:
        chat, told = open_chat(package, settings)
        app = create_app(
            chat,
            package=told,
            page=page_files(),
            hosts=own_names(settings.host),
            api_key=settings.api_key,
            most_requests=settings.most_requests,
        )
        print(f"{url_of(listener)}  {told['model']}, {told['engine']} engine; Ctrl-C ends it", flush=True)
        if not is_loopback(listener) and settings.api_key is None:
            print("note: other machines can reach this server; --api-key keeps strangers out", file=sys.stderr)
        server_of(app, chat).run(sockets=[listener])


def server_of(app: Guard, chat: Chat) -> Server:
    """Return what runs an app on a socket."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
    return Server(config, chat)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ``PromptError`` for a host or a port that cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError, OverflowError) as error:
        told = getattr(error, "strerror", None) or str(error)
        reason = told.partition(" (while")[0]  # behind it is the address again
        raise PromptError(f"cannot listen at {host}, port {port}: {reason}") from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each small reply takes 40 ms
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address of the page, as a browser on this machine takes it."""
    host, port = listener.getsockname()[:2]
    found = ipaddress.ip_address(host.partition("%")[0])
    shown = "localhost" if found.is_unspecified else f"[{host}]" if found.version == 6 else host
    return f"http://{shown}:{port}/"


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def open_chat(package: Path, settings: Settings) -> tuple[Chat, dict[str, Any]]:
    """Load a package. Return what answers, and what ``GET /package`` tells of it. Raises ``UserError``."""
    program = find_program(package)
    session = Session.load(
        program,
        tokenizer=settings.tokenizer,
        cpu_threads=settings.threads,
        check=settings.check,
        engine=settings.engine,
        draft_model_path=settings.draft_model_path,
    )
    note_unused_draft(settings.draft_model_path, logits_to_keep=session.card.logits_to_keep)
    tokenizer_path = settings.tokenizer or find_tokenizer(program.parent)
    tokenizer = ChatTokenizer.of(session.card, load_tokenizer(tokenizer_path))
    answerer = Answerer(session, Conversations(session, most_bytes=settings.saved_bytes), tokenizer)
    images = ImageReader(session.card, allows_remote=settings.allows_remote)
    verification = Verification(program, seconds=settings.seconds)
    told = describe(program, session, is_checked=settings.check)
    told["verification"]["can_verify"] = verification.is_possible
    return Chat(answerer, images=images, verification=verification, seconds=settings.seconds), told


def describe(program: Path, session: Session, *, is_checked: bool) -> dict[str, Any]:
    """Return what the page shows of a package."""
    card = session.card
    return {
        "model": card.source,
        "family": card.family,
        "recipe": card.recipe,
        "context": card.max_context_len,
        "image_size": card.image_size,
        "image_tokens": card.num_image_tokens,
        "engine": session.engine,
        "version": version_line(),
        "program": program.name,
        "verification": verification_of(program, is_checked=is_checked),
    }
