"""What ``POST /v1/chat/completions`` takes, as OpenAI defines it, within limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llava_runner.checks import MAX_SEED
from llava_runner.errors import PromptError
from llava_runner.serve.refusal import Refusal, unusable
from llava_runner.stop_strings import checked_stops

MAX_BODY = 32 << 20  # bytes
MAX_TEXT = 1 << 20  # characters
MAX_URL = 28 << 20  # characters: an image of 20 MB in base64
MAX_MESSAGES = 256
MAX_PARTS = 64
MAX_IMAGES = 32  # of a request
MAX_TOKENS = 1 << 24  # no context is larger
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_SCHEMA_DEPTH = 64

# Fields that would change the answer and are not supported, and the values that change nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "grammar": ("",),
    "json_schema": ({},),
}


class Part(BaseModel):
    """A part of a message: a field of the requests, whose other fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class ImageUrl(Part):
    """An image: a ``data:`` URL, or one of another host where these are allowed."""

    url: Annotated[str, Field(max_length=MAX_URL)]


class ContentPart(Part):
    """A text or an image in a message."""

    type: Literal["text", "image_url"]
    text: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    image_url: ImageUrl | None = None


class Message(Part):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT)] | Annotated[list[ContentPart], Field(max_length=MAX_PARTS)]


class StreamOptions(Part):
    """How an answer is streamed."""

    include_usage: bool | None = None


class JsonSchema(Part):
    """A schema with its name."""

    name: Annotated[str, Field(max_length=64)] = "answer"
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(Part):
    """The form of the answer: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(BaseModel):
    """The body of a request. ``model`` may be any name: there is one model, and answers tell which.

    Where temperature, top_p and the number of tokens are missing, they are those of the model's authors.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: Annotated[str, Field(max_length=512)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=MAX_SEED)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None


class NoFields(BaseModel):
    """The body of a request that says nothing: an empty object."""

    model_config = ConfigDict(extra="forbid")


def check_fields(request: ChatRequest) -> None:
    """Raise ``Refusal`` for fields that would change the answer and are not supported, or that need another one."""
    for name, value in (request.model_extra or {}).items():
        if name in REFUSED and value is not None and value not in REFUSED[name]:
            raise unusable(f"{name} is not supported by this server", param=name, code="unsupported_parameter")
    if request.stream_options and not request.stream:
        raise unusable("stream_options needs stream: true", param="stream_options")
    if request.top_logprobs is not None and not request.logprobs:
        raise unusable("top_logprobs needs logprobs: true", param="top_logprobs")
    try:
        checked_stops(request.stop)
    except PromptError as error:
        raise unusable(str(error), param="stop") from error
    stated = request.response_format
    if stated and stated.type == "json_schema":
        if stated.json_schema is None or stated.json_schema.schema_ is None:
            raise unusable("response_format of type json_schema needs json_schema.schema", param="response_format")
        if _is_deeper(stated.json_schema.schema_, MAX_SCHEMA_DEPTH):
            raise _too_deep()


def most_tokens(request: ChatRequest) -> int | None:
    """Return the most tokens of the answer, by either name of the field, or None where the request does not say."""
    return request.max_completion_tokens or request.max_tokens


def seed_of(request: ChatRequest) -> int | None:
    """Return the seed as the runner takes it: OpenAI's has a sign."""
    return None if request.seed is None else request.seed % (MAX_SEED + 1)


def _too_deep() -> Refusal:
    return unusable(f"the schema has more than {MAX_SCHEMA_DEPTH} levels", param="response_format")


def _is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects are nested in more levels."""
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner)
