"""A request whose answer is waited for, with the ends that it may come to before its time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from llava_runner.serve.answering import Begun, Finished, Piece
from llava_runner.serve.metrics import Metrics
from llava_runner.serve.refusal import Refusal, stopping
from llava_runner.serve.worker import Job, Stopping, Worker

CLIENT_GONE = 499  # nginx's status for it


class Asked:
    """A job in the queue, for a client that may go away, with a deadline."""

    def __init__(
        self, job: Job, *, worker: Worker, metrics: Metrics, request: Request, arrival: float, seconds: float
    ) -> None:
        """Put a job in the queue. It ends ``seconds`` after its ``arrival``. Raises ``Refusal`` if the server stops."""
        self._job = job
        self._worker = worker
        self._metrics = metrics
        self._arrival = arrival
        self._begun: Begun | None = None
        self._finished: Finished | None = None
        try:
            worker.submit(job)
        except Stopping:
            raise stopping() from None
        left = max(0.0, arrival + seconds - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(left, worker.end, job, "time")
        self._watch = asyncio.create_task(self._wait_for_disconnect(request))

    async def begun(self) -> Begun:
        """Return once the prompt is read. Raises ``Refusal``, ``UserError``, and what is our bug."""
        found = await self._next()
        assert isinstance(found, Begun)
        self._begun = found
        return found

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of the answer. Raises as ``begun`` does."""
        is_first_told = False
        while not isinstance(found := await self._next(), Finished):
            if not is_first_told:
                self._metrics.count_first_token(time.monotonic() - self._arrival)
                is_first_told = True
            yield found
        self._finished = found
        assert self._begun is not None
        self._metrics.count_answer(self._begun.reading, found)

    @property
    def finished(self) -> Finished:
        """The end of the answer, after all pieces."""
        assert self._finished is not None
        return self._finished

    def close(self) -> None:
        """End the job, if it still goes on."""
        self._timer.cancel()
        self._watch.cancel()
        if self._finished is None:
            self._worker.end(self._job, "gone")

    async def _next(self) -> Any:
        """Return what the job tells next. Raises what it failed with."""
        found = await self._job.events.get()
        if isinstance(found, Exception) and self._job.ending == "gone":
            raise Refusal(CLIENT_GONE, "the client has gone")  # which nobody reads but the counts
        if isinstance(found, Stopping):
            raise stopping()
        if isinstance(found, TimeoutError):
            raise Refusal(503, "the model was busy for too long", headers={"Retry-After": "5"})
        if isinstance(found, Exception):
            raise found
        return found

    async def _wait_for_disconnect(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._worker.end(self._job, "gone")
