"""Replies as the server's OpenAPI document describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorBody


class Logprob(BaseModel):
    """A token, the natural logarithm of its probability, and its bytes."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Logprob):
    """A token of the answer, and the most likely ones in its place."""

    top_logprobs: list[Logprob]


class Logprobs(BaseModel):
    """The tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    """The one choice."""

    index: Literal[0]
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class PromptDetails(BaseModel):
    """How much of the prompt was read for an earlier answer."""

    cached_tokens: int


class Usage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Completion(BaseModel):
    """A whole answer. ``timings`` has milliseconds, by the names of llama.cpp's server."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[Choice]
    usage: Usage
    timings: dict[str, float]


class Verdict(BaseModel):
    """What ``llava verify`` found, and what it printed."""

    verdict: Literal["PASS", "FAIL"]
    text: str


CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Completion,
        "description": "The answer, or with stream: true its parts as server-sent events",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
}
