"""The way of a request to its answer: images, queue, and the reply."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.requests import Request

from llava_runner.answer_options import LogitsProcessor
from llava_runner.errors import PromptError, UserError
from llava_runner.logprobs import TokenLogprobs
from llava_runner.serve.answering import Answerer, Begun
from llava_runner.serve.asked import Asked
from llava_runner.serve.images import ImageReader, download_image
from llava_runner.serve.metrics import Metrics
from llava_runner.serve.refusal import Refusal, mistake, unusable
from llava_runner.serve.replies import Reply, event, finish_reason, timings
from llava_runner.serve.schema import ChatRequest, check_fields
from llava_runner.serve.turns import Dialogue, PreparedImage, dialogue, image_urls
from llava_runner.serve.verification import Verification
from llava_runner.serve.worker import Job, Worker

logger = logging.getLogger("llava_runner.serve")


class Chat:
    """Answers requests, one after the other."""

    def __init__(self, answerer: Answerer, *, images: ImageReader, verification: Verification, seconds: float) -> None:
        """Take over what answers. ``seconds`` limit the time of a request, from its arrival to its last token."""
        self.card = answerer.card
        self.created = int(time.time())
        self.seconds = seconds
        self.verification = verification
        self._answerer = answerer
        self._images = images
        self._schemas = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llava-schemas")
        self.worker = Worker(cancel=answerer.session.cancel)
        self.metrics = Metrics(self.worker, answerer.conversations)

    def close(self) -> None:
        """End all answers, and free the model."""
        self.worker.close()
        self._images.close()
        self._schemas.shutdown(cancel_futures=True)
        self._answerer.session.close()

    async def complete(self, request: Request, body: ChatRequest) -> dict[str, Any]:
        """Return a whole answer. Raises ``Refusal`` and ``UserError``."""
        asked = await self._ask(request, body)
        try:
            begun = await asked.begun()
            logprobs: list[TokenLogprobs] = []
            async for piece in asked.pieces():
                logprobs += piece.logprobs
            return self._reply().completion(begun.reading, asked.finished, logprobs=logprobs if body.logprobs else None)
        finally:
            asked.close()

    async def stream(self, request: Request, body: ChatRequest) -> AsyncIterator[bytes]:
        """Return the events of an answer, once its prompt is read. Raises ``Refusal`` and ``UserError``."""
        asked = await self._ask(request, body)
        try:
            begun = await asked.begun()
        except BaseException:
            asked.close()
            raise
        return self._events(asked, begun, body)

    async def _events(self, asked: Asked, begun: Begun, body: ChatRequest) -> AsyncIterator[bytes]:
        """Yield the events of an answer. What goes wrong meanwhile is one, too."""
        reply = self._reply()
        has_usage = bool(body.stream_options and body.stream_options.include_usage)
        empty: dict[str, Any] = {"usage": None} if has_usage else {}
        try:
            yield event({**reply.chunk({"role": "assistant", "content": ""}), **empty})
            async for piece in asked.pieces():
                logprobs = piece.logprobs if body.logprobs else None
                yield event({**reply.chunk({"content": piece.text}, logprobs=logprobs), **empty})
                await asyncio.sleep(0)  # lets the loop notice that the client is gone, before the next piece
            took = {"timings": timings(begun.reading, asked.finished.answer.timings)}
            last = reply.chunk({}, finish=finish_reason(asked.finished))
            yield event({**last, **empty} if has_usage else {**last, **took})
            if has_usage:
                yield event({**reply.usage_chunk(begun.reading, asked.finished), **took})
            yield event("[DONE]")
        except UserError as error:
            yield event(mistake(error).body())
        except Exception:
            logger.exception("an answer failed")
            yield event(Refusal(500, "the server made a mistake; its log has the details").body())
        finally:
            asked.close()

    async def _ask(self, request: Request, body: ChatRequest) -> Asked:
        """Read a request's images, and put it in the queue. Raises ``Refusal``."""
        arrival = time.monotonic()
        check_fields(body)
        processor = await self._processor(body)
        found = await self._dialogue(body)
        return Asked(
            Job(self._answerer.job(body, found, processor=processor)),
            worker=self.worker,
            metrics=self.metrics,
            request=request,
            arrival=arrival,
            seconds=self.seconds,
        )

    async def _processor(self, body: ChatRequest) -> LogitsProcessor | None:
        """Return what keeps the answer to JSON, if that is asked for. Raises ``Refusal``."""
        if body.response_format is None:
            return None
        try:
            make = partial(self._answerer.processor, body)
            return await asyncio.get_running_loop().run_in_executor(self._schemas, make)
        except PromptError as error:
            raise unusable(str(error), param="response_format") from error

    async def _dialogue(self, body: ChatRequest) -> Dialogue:
        """Return the conversation of a request, with its images. Raises ``Refusal``."""
        urls = image_urls(body.messages)
        are_remote = [self._images.is_remote(url) for url in urls]
        found = dialogue(body.messages, [PreparedImage(b"")] * len(urls))  # its mistakes come before images are read
        if not urls:
            return found
        loop = asyncio.get_running_loop()
        contents: list[str | bytes] = list(urls)
        for i, url in enumerate(urls):
            if are_remote[i]:
                contents[i] = await loop.run_in_executor(self._images.downloads, partial(download_image, url))
        images = await loop.run_in_executor(self._images.threads, partial(self._images.read, contents))
        return dialogue(body.messages, images)

    def _reply(self) -> Reply:
        return Reply(self.card, self._answerer.tokenizer)
