"""Who may ask, and how much: checks that come before any request is looked into."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llava_runner.serve.refusal import Refusal
from llava_runner.serve.schema import MAX_BODY

BODY_SECONDS = 60.0  # for a client to send all of a request
MAX_VALUES = 200_000  # in the JSON of a body: each takes far more memory than its bytes
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
SAFE_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """What is allowed.

    ``hosts`` are names of this server; ``open_paths`` take no key. So many answers may be asked for at a time as
    ``most_requests``.
    """

    hosts: frozenset[str]
    open_paths: frozenset[str]
    api_key: str | None
    most_requests: int


def own_names(host: str) -> frozenset[str]:
    """Return the names by which this machine may be asked, besides addresses."""
    name = socket.gethostname().lower()
    return frozenset({"localhost", host.lower(), name, f"{name}.local"})


class Guard:
    """Refuses what is not allowed, reads bodies within limits, and puts headers on every reply."""

    def __init__(self, app: ASGIApp, *, access: Access, count: Callable[[str, int], None]) -> None:
        """Stand before an app. ``count`` gets path and status of every reply."""
        self._app = app
        self._access = access
        self._count = count
        self._asking = 0  # how many answers are asked for at the moment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SAFE_HEADERS)
                self._count(scope["path"], message["status"])
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "POST":
                await self._ask(scope, receive, send_safely)
            else:
                await self._app(scope, receive, send_safely)
        except Refusal as refusal:
            await send_refusal(refusal, send_safely)
        except ConnectionError:
            pass  # the client has gone

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one of a limited number of requests through. Raises ``Refusal``.

        The limit comes before the body is read, so that it also limits the memory that bodies take.
        """
        if self._asking >= self._access.most_requests:
            raise Refusal(429, "too many requests wait for the model", code="queue_full", headers={"Retry-After": "5"})
        self._asking += 1
        try:
            receive = await with_body(scope, receive)
            await self._app(scope, receive, send)
        finally:
            self._asking -= 1

    def _check(self, scope: Scope) -> None:
        """Raise ``Refusal`` for a request from another site's page, by a strange name, or without the key.

        A page of another site could reach this server under a name of its own that leads here (DNS rebinding), or by
        its address. The first has a strange host, the second a strange origin.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own(host):
            raise Refusal(403, f"this server does not answer for the host {host[:100]!r}", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise Refusal(403, "pages of other sites may not use this server", code="origin_not_allowed")
        key = self._access.api_key
        if key is None or scope["path"] in self._access.open_paths:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
            raise Refusal(
                401,
                "this server needs its API key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _is_own(self, host: str) -> bool:
        """Return whether a ``Host`` header names this server: an address, or one of its names."""
        name, colon, port = host.rpartition(":")
        if not colon or host.endswith("]"):
            name, port = host, "80"
        if not (port.isascii() and port.isdigit()):
            return False
        if name.lower() in self._access.hosts:
            return True
        try:
            ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
        except ValueError:
            return False
        return True


async def with_body(scope: Scope, receive: Receive) -> Receive:
    """Read the body of a request. Return what an app receives in its place: the body at once. Raises ``Refusal``."""
    headers = Headers(scope=scope)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Refusal(415, "the body must be JSON: Content-Type: application/json")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 15 or int(length) > MAX_BODY:
        raise _too_large()
    try:
        body = await asyncio.wait_for(_read(receive), timeout=BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise Refusal(413, f"the body has more than {MAX_VALUES} values", code="request_too_large")
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


async def _read(receive: Receive) -> bytes:
    """Return all of a body. Raises ``Refusal`` if it is too large, and ``ConnectionError`` if the client goes."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _too_large()
        if not message.get("more_body"):
            return bytes(body)


async def send_refusal(refusal: Refusal, send: Send) -> None:
    """Send an error in OpenAI's shape. What is left of the request is not read, so the connection ends."""
    content = json.dumps(refusal.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **refusal.headers}
    if refusal.status in (408, 413, 415, 429):
        headers["connection"] = "close"
    listed = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": listed})
    await send({"type": "http.response.body", "body": content})


def _too_large() -> Refusal:
    return Refusal(413, f"the body has more than the {MAX_BODY} bytes that are read", code="request_too_large")
