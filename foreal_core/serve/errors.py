"""What goes wrong, in OpenAI's shape: a status, and {"error": {message, type, param, code}}.

Clients show `message` alone, so it is a whole sentence; some go by words in it (LiteLLM by
"maximum context length", LangChain by "context_length_exceeded").
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from foreal_core.config import FoReaLConfig
from foreal_core.errors import (
    ConfigError,
    ContextOverflowError,
    EngineClosedError,
    FoReaLError,
    OutOfMemoryError,
    QueueFullError,
    ServerError,
)

# Clients repeat what failed with 409, 429 or 5xx unless this header says not to.
NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of the HTTP answer.
        message: a whole sentence: what was given, what is allowed, what to do.
        kind: OpenAI's "type".
        code: what programs go by.
        param: the name of the request's field that is wrong, if it is one.
        headers: of the HTTP answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def record(self) -> dict[str, Any]:
        """The error as an object, the same in answers and in streams."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def body(self) -> bytes:
        """The error as JSON."""
        return json.dumps(self.record()).encode()


class ClientLeft(Exception):
    """The client closed its connection before it had its answer."""


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is understood and not allowed."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, retry_after: int, code: str) -> ApiError:
    """The server takes no requests for now."""
    headers = {"retry-after": str(retry_after)}
    return ApiError(503, message, kind="server_error", code=code, headers=headers)


def busy(message: str, retry_after: int) -> ApiError:
    """The server has more to do than it takes on; clients try again by themselves."""
    headers = {"retry-after": str(retry_after)}
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=headers)


def timed_out(seconds: float) -> ApiError:
    """An answer that took longer than the server allows. The same request would again."""
    return ApiError(
        504,
        f"The answer was stopped after {seconds:g} seconds, the most that this server allows. Ask "
        "for fewer tokens, or raise --request-timeout.",
        kind="server_error",
        code="timeout",
        headers=NO_RETRY,
    )


def stopped() -> ApiError:
    """An answer that was still running when the server stopped."""
    return unavailable(
        "The server is shutting down; this answer was stopped before its end.", 5, "shutting_down"
    )


def overflow(error: ContextOverflowError, max_context: int) -> ApiError:
    """A prompt that fills the context."""
    return ApiError(
        400,
        f"This model's maximum context length is {max_context} tokens: {error} "
        "(context_length_exceeded)",
        code="context_length_exceeded",
        param="messages",
    )


# Names of our settings, as OpenAI calls them where that differs.
_PARAMS = {
    **{field.name: field.name for field in dataclasses.fields(FoReaLConfig)},
    **{"max_new_tokens": "max_tokens", "json_schema": "response_format", "call_schema": "tools"},
}


def of(error: Exception, max_context: int = 0) -> ApiError:
    """The answer to a request that ended with `error`.

    Args:
        error: anything.
        max_context: tokens of prompt and completion at most.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, ConfigError):
        return refused(str(error), param=_param(str(error)), code="invalid_value")
    if isinstance(error, ContextOverflowError):
        return overflow(error, max_context)
    if isinstance(error, QueueFullError):
        return busy(str(error), 1)
    if isinstance(error, EngineClosedError):
        return unavailable(f"The pair takes no more requests: {error}", 30, "closed")
    if isinstance(error, ServerError):
        return unavailable(str(error), 5, "server_unavailable")
    if isinstance(error, OutOfMemoryError):
        kind = "server_error"
        return ApiError(500, str(error), kind=kind, code="out_of_memory", headers=NO_RETRY)
    # What our own errors say is written for users; of others only the server's log tells.
    message = str(error) if isinstance(error, FoReaLError) else "The server failed; see its log."
    return ApiError(500, message, kind="server_error", code="internal_error")


def _param(message: str) -> str | None:
    """The field that a message of ours is about: it begins with its name."""
    first = re.match(r"\w+(\[\d+\])?", message)
    if first is None:
        return None
    return first[0] if first[1] else _PARAMS.get(first[0])


def _invalid(error: ValidationError) -> ApiError:
    """JSON that has not the form of a request: 422, or 400 where it is no JSON at all."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is no valid JSON: {first['msg']}.", code="invalid_json")
    # Names of pydantic's union branches are no part of the path that the client wrote.
    path = [str(part) for part in first["loc"] if not re.search(r"[^\w-]", str(part))]
    where = ".".join(path)
    message = f"{where or 'The body'} has the wrong form: {first['msg'].lower()}."
    return ApiError(422, message, param=where or None, code="invalid_type")
