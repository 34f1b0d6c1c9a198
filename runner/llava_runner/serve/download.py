"""Files on other hosts of the public internet, and on no others.

Whoever can ask this server must not reach what only this machine can: its own services, the router, other machines of
the network. So a name is resolved once, every address is checked, and the connection is made to a checked address.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from llava_runner.serve.refusal import Refusal, unusable

SECONDS = 20.0  # for all of a download
MAX_REDIRECTS = 3
PORTS = {"http": 80, "https": 443}
# Addresses in which one of version 4 is wrapped, which a gateway would unwrap.
WRAPPED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")))


def download(url: str, *, max_bytes: int) -> bytes:
    """Return the file at a URL, after at most 3 redirects. Raises ``Refusal``."""
    deadline = time.monotonic() + SECONDS
    for _ in range(MAX_REDIRECTS + 1):
        try:
            content, url = _get(url, deadline=deadline, max_bytes=max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise unusable(f"an image cannot be downloaded: {error}", param="messages") from error
        if content is not None:
            return content
    raise unusable(f"an image has more than {MAX_REDIRECTS} redirects", param="messages")


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in WRAPPED) or found.is_site_local:
            return False
    return found.is_global and not (found.is_multicast or found.is_reserved)


def public_address(host: str, port: int) -> str:
    """Return an address of a host. Raises ``Refusal`` if any of its addresses is not public, and ``OSError``."""
    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not addresses or not all(map(is_public, addresses)):
        raise _forbidden(f"{host} is not a host of the public internet")
    return addresses[0]


def _get(url: str, *, deadline: float, max_bytes: int) -> tuple[bytes | None, str]:
    """Return the file at a URL, or None and the URL that it redirects to. Raises ``Refusal``, and what is caught."""
    parts = urlsplit(url)
    connection = _connect(parts, deadline)
    # A host that sends a byte now and then would never be late for one read.
    watch = threading.Timer(_left(deadline), _break, [connection.sock])
    watch.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "llava-serve"})
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            return None, urljoin(url, response.headers.get("Location", ""))
        if response.status != 200:
            raise unusable(f"an image cannot be downloaded: the host answers {response.status}", param="messages")
        content = response.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise unusable(f"an image is larger than the {max_bytes} bytes that are read", param="messages")
        _left(deadline)  # after it, what was read may be a part
        return content, url
    finally:
        watch.cancel()
        connection.close()


def _connect(parts: SplitResult, deadline: float) -> http.client.HTTPConnection:
    """Return a connection to the host of a URL, by a public address of it. Raises ``Refusal``."""
    if parts.scheme not in PORTS or not parts.hostname or parts.username is not None:
        raise _forbidden("an image on another host has a URL like https://host/image.png")
    port = PORTS[parts.scheme]
    if parts.port not in (None, port):
        raise _forbidden(f"an image on another host must be at its port {port}")
    address = public_address(parts.hostname, port)
    connection = http.client.HTTPConnection(parts.hostname, port)
    stream = socket.create_connection((address, port), timeout=_left(deadline))
    if parts.scheme == "https":
        stream = ssl.create_default_context().wrap_socket(stream, server_hostname=parts.hostname)
    connection.sock = stream
    return connection


def _break(stream: socket.socket) -> None:
    """Let whoever reads from a socket find its end."""
    with suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


def _left(deadline: float) -> float:
    """Return the seconds until the deadline. Raises ``TimeoutError`` after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long")
    return left


def _forbidden(message: str) -> Refusal:
    return unusable(message, param="messages", code="forbidden_url")
