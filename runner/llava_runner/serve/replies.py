"""Answers in the shape that OpenAI defines for chat completions, whole and streamed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_runner.answer import StopReason
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import ModelCard
from llava_runner.logprobs import Logprob, TokenLogprobs
from llava_runner.serve.answering import Finished
from llava_runner.serve.conversations import Reading
from llava_runner.timings import Timings

FINISH_REASONS: dict[StopReason | None, str] = {"eos": "stop", "stop": "stop"}  # all others are "length"


@dataclass(frozen=True)
class Reply:
    """What all parts of one reply have in common."""

    card: ModelCard
    tokenizer: ChatTokenizer
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(
        self, reading: Reading, finished: Finished, *, logprobs: Sequence[TokenLogprobs] | None
    ) -> dict[str, Any]:
        """Return a whole answer."""
        answer = finished.answer
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"message": message, **self._choice(logprobs, finish_reason(finished))}
        return {
            **self._head("chat.completion", [choice]),
            "usage": usage(reading, finished),
            "timings": timings(reading, answer.timings),
        }

    def chunk(
        self, delta: dict[str, Any], *, logprobs: Sequence[TokenLogprobs] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        """Return a part of a streamed answer."""
        return self._head("chat.completion.chunk", [{"delta": delta, **self._choice(logprobs, finish)}])

    def usage_chunk(self, reading: Reading, finished: Finished) -> dict[str, Any]:
        """Return the part of a streamed answer that comes last, and only says what was used."""
        return {**self._head("chat.completion.chunk", []), "usage": usage(reading, finished)}

    def _head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.card.source,
            "system_fingerprint": None,
            "choices": choices,
        }

    def _choice(self, logprobs: Sequence[TokenLogprobs] | None, finish: str | None) -> dict[str, Any]:
        listed = None if logprobs is None else {"content": self._logprobs(logprobs), "refusal": None}
        return {"index": 0, "logprobs": listed, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
        """Return the tokens of an answer with their probabilities, without the one that ends it."""
        return [
            {**self._logprob(token), "top_logprobs": [self._logprob(each) for each in token.top]}
            for token in tokens
            if token.id not in self.card.eos_ids
        ]

    def _logprob(self, token: Logprob) -> dict[str, Any]:
        content = self.tokenizer.decode_piece(token.id)
        special = next((each.content for each in self.card.tokenizer.added_tokens if each.id == token.id), "")
        return {
            "token": content.decode(errors="replace") or special,
            "logprob": max(token.logprob, -9999.0),  # JSON has no infinity, and OpenAI's is this
            "bytes": list(content),
        }


def finish_reason(finished: Finished) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return FINISH_REASONS.get(finished.answer.stop_reason, "length")


def usage(reading: Reading, finished: Finished) -> dict[str, Any]:
    """Return the numbers of tokens. Those of a prompt are all positions, images included."""
    count = len(finished.answer.ids)
    return {
        "prompt_tokens": reading.prompt_tokens,
        "completion_tokens": count,
        "total_tokens": reading.prompt_tokens + count,
        "prompt_tokens_details": {"cached_tokens": reading.cached_tokens},
    }


def timings(reading: Reading, answer: Timings) -> dict[str, float | int]:
    """Return the times in milliseconds, by the names of llama.cpp's server, and those of the images."""
    predicted_ms = answer.sample.ms + answer.eval.ms
    return {
        "cache_n": reading.cached_tokens,
        "image_n": reading.image_n,
        "image_ms": round(reading.image_ms, 3),
        **_stage("prompt", reading.prompt_n, reading.prompt_ms),
        **_stage("predicted", answer.sample.count, predicted_ms),
        "draft_n": answer.drafted,
        "draft_n_accepted": answer.accepted,
    }


def event(value: dict[str, Any] | str) -> bytes:
    """Return a server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _stage(name: str, count: int, ms: float) -> dict[str, float | int]:
    return {
        f"{name}_n": count,
        f"{name}_ms": round(ms, 3),
        f"{name}_per_token_ms": round(ms / count, 3) if count else 0.0,
        f"{name}_per_second": round(1000 * count / ms, 3) if ms else 0.0,
    }
