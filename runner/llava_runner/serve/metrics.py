"""What ``GET /metrics`` tells, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from llava_runner.serve.answering import Finished
from llava_runner.serve.conversations import Conversations, Reading
from llava_runner.serve.worker import Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
TOKENS_A_SECOND = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Counts of one server."""

    def __init__(self, worker: Worker, conversations: Conversations) -> None:
        disable_created_metrics()  # a time for each count, which nobody asked for
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("llava_requests", "Requests by path and status", ["path", "status"], registry=registry)
        self._prompt = Counter("llava_prompt_tokens", "Positions of prompts that were read", registry=registry)
        self._cached = Counter("llava_cached_tokens", "Positions that need not be read again", registry=registry)
        self._images = Counter("llava_image_tokens", "Positions of images that were encoded", registry=registry)
        self._completion = Counter("llava_completion_tokens", "Tokens of answers", registry=registry)
        self._endings = Counter("llava_answers", "Answers by what ended them", ["reason"], registry=registry)
        self._sources = Counter(
            "llava_conversations", "Answers by where their conversation was found", ["source"], registry=registry
        )
        self._first = Histogram(
            "llava_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=SECONDS,
            registry=registry,
        )
        self._speed = Histogram(
            "llava_decode_tokens_per_second", "Speed of answers", buckets=TOKENS_A_SECOND, registry=registry
        )
        self._gauge("llava_requests_waiting", "Requests that wait for the model").set_function(lambda: worker.waiting)
        self._gauge("llava_requests_running", "Requests that the model answers now").set_function(
            lambda: int(worker.is_running)
        )
        self._gauge("llava_saved_conversations", "Conversations that are saved").set_function(
            lambda: conversations.saved
        )
        self._gauge("llava_saved_conversations_bytes", "Memory of saved conversations").set_function(
            lambda: conversations.bytes
        )
        ProcessCollector(registry=registry)  # memory and processor time of the process

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def count_request(self, path: str, status: int) -> None:
        """Count a reply. ``path`` is one of the server's own, so that there are few."""
        self._requests.labels(path, str(status)).inc()

    def count_first_token(self, seconds: float) -> None:
        """Count the time from a request's arrival to its first token."""
        self._first.observe(seconds)

    def count_answer(self, reading: Reading, finished: Finished) -> None:
        """Count an answer that has ended."""
        answer = finished.answer
        self._prompt.inc(reading.prompt_n)
        self._cached.inc(reading.cached_tokens)
        self._images.inc(reading.image_n)
        self._completion.inc(len(answer.ids))
        self._endings.labels(finished.ending or answer.stop_reason or "failed").inc()
        self._sources.labels(reading.source).inc()
        if answer.timings.eval.count:
            self._speed.observe(answer.timings.eval.per_second)

    def text(self) -> bytes:
        """Return all counts."""
        return generate_latest(self._registry)
