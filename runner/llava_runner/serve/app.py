"""The server's routes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse

from llava_runner.arguments import version_line
from llava_runner.errors import UserError
from llava_runner.serve.access import Access, Guard
from llava_runner.serve.chat import Chat
from llava_runner.serve.documented import CHAT_RESPONSES, Error, Verdict
from llava_runner.serve.page_files import PageFile
from llava_runner.serve.refusal import Refusal, mistake, unusable
from llava_runner.serve.schema import ChatRequest, NoFields

logger = logging.getLogger("llava_runner.serve")

LONGEST_PATH = 200  # characters of a path in a message
PATHS = "the API is POST /v1/chat/completions and GET /v1/models, and GET /openapi.json lists all paths"
OPEN_PATHS = {"/", "/health"}  # which need no API key; those of the page need none, too


def create_app(
    chat: Chat,
    *,
    package: dict[str, Any],
    page: dict[str, PageFile],
    hosts: frozenset[str],
    api_key: str | None = None,
    most_requests: int = 32,
) -> Guard:
    """Return the server's app, which takes ``most_requests`` at a time. At its end it closes ``chat``.

    ``package`` is what ``GET /package`` tells, ``page`` the page's files by their names, ``hosts`` the server's names.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(chat.close)

    app = FastAPI(
        title="llava serve",
        version=version_line(),
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        responses={"4XX": {"model": Error}, "5XX": {"model": Error}},
    )
    _handle_errors(app)
    _add_api(app, chat, package)
    _add_page(app, page)
    paths = {getattr(route, "path", "") for route in app.routes}
    access = Access(
        hosts=hosts,
        open_paths=frozenset(OPEN_PATHS | {f"/{name}" for name in page}),
        api_key=api_key,
        most_requests=most_requests,
    )

    def count(path: str, status: int) -> None:
        chat.metrics.count_request(path if path in paths else "other", status)

    return Guard(app, access=access, count=count)


def _add_api(app: FastAPI, chat: Chat, package: dict[str, Any]) -> None:
    """Add the routes of the API."""
    model = {"id": chat.card.source, "object": "model", "created": chat.created, "owned_by": "llava_export"}

    @app.post("/v1/chat/completions", responses=CHAT_RESPONSES)
    async def complete_chat(request: Request, body: ChatRequest) -> Response:
        """Answer the last message of a conversation, about its images."""
        if body.stream:
            return StreamingResponse(
                await chat.stream(request, body), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"}
            )
        return _json(await chat.complete(request, body))

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """Return the one model."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        """Return the model of a name."""
        if name != model["id"]:
            raise Refusal(404, f"there is no model {name!r}; GET /v1/models lists the one", code="model_not_found")
        return model

    @app.get("/health")
    async def tell_health() -> dict[str, Any]:
        """Return whether requests are answered."""
        if chat.worker.is_stopping:
            raise Refusal(503, "the server stops")
        return {"status": "ok", "waiting": chat.worker.waiting}

    @app.get("/metrics", response_class=Response)
    async def tell_metrics() -> Response:
        """Return counts for Prometheus."""
        return Response(chat.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/package")
    async def tell_package() -> dict[str, Any]:
        """Return what the page shows of the package."""
        return package

    @app.post("/package/verification")
    async def verify_package(body: NoFields) -> Verdict:
        """Compare the package with the original model, as ``llava verify`` does, once while the server runs."""
        return await chat.verification.verdict()


def _add_page(app: FastAPI, page: dict[str, PageFile]) -> None:
    """Add a route for each file of the page, so that no path of a request reaches the file system."""

    def sender(file: PageFile) -> Callable[[], Any]:
        async def send() -> Response:
            return Response(file.content, media_type=file.media_type)

        return send

    for name, file in page.items():
        app.add_api_route(f"/{name}", sender(file), include_in_schema=False)
    if "index.html" in page:
        app.add_api_route("/", sender(page["index.html"]), include_in_schema=False)


def _handle_errors(app: FastAPI) -> None:
    """Let every error have OpenAI's shape."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return _refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _refusal(_first_mistake(error))

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        return _refusal(mistake(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        path = request.url.path if len(request.url.path) <= LONGEST_PATH else request.url.path[:LONGEST_PATH] + "..."
        message = error.detail
        if error.status_code == 404:
            message = f"there is nothing at {path}; {PATHS}"
        elif error.status_code == 405:
            message = f"{request.method} is not possible at {path}, and {headers.get('Allow', 'nothing')} is"
        return _refusal(Refusal(error.status_code, message, headers=headers))

    @app.exception_handler(MemoryError)
    async def no_memory(request: Request, error: MemoryError) -> Response:
        return _refusal(Refusal(503, "there is not enough memory for this request", headers={"Retry-After": "10"}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _refusal(Refusal(500, "the server made a mistake; its log has the details"))


def _first_mistake(error: RequestValidationError) -> Refusal:
    """Return the refusal of a body that is not as the schema says: the mistake that is told the most exactly."""
    found = max(error.errors(), key=lambda each: len(each["loc"]))
    if found["type"] == "json_invalid":
        return unusable("the body is not JSON")
    # Of a value that may be of several types, pydantic names the types in the place.
    place = [part for part in found["loc"][1:] if isinstance(part, int) or re.fullmatch("[a-z_]{4,}", part)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return unusable(f"{param or 'the body'}: {found['msg']}", param=param or None)


def _json(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value, ensure_ascii=False).encode(), media_type="application/json")


def _refusal(refusal: Refusal) -> Response:
    content = json.dumps(refusal.body())  # in ASCII: a request may hold what is no Unicode
    return Response(content, refusal.status, headers=refusal.headers, media_type="application/json")
