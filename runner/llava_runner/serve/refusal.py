"""What a request is refused with: a status of HTTP, and an error in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from llava_runner.checks import TOO_LONG
from llava_runner.errors import PromptError, UserError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class Refusal(Exception):
    """A request that is not answered, and why. The message is for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the error in OpenAI's shape."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def stopping() -> Refusal:
    """Return the refusal of a request that comes too late."""
    return Refusal(503, "the server stops", headers={"Retry-After": "5"})


def unusable(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """Return the refusal of a request that cannot be used as it is, with status 400."""
    return Refusal(400, message, param=param, code=code)


def mistake(error: UserError) -> Refusal:
    """Return the refusal of a request that the runner cannot use. OpenAI has a code for one that is too long."""
    is_too_long = isinstance(error, PromptError) and str(error).endswith(TOO_LONG)
    return unusable(str(error), param="messages", code="context_length_exceeded" if is_too_long else None)
