"""Errors as clients of the engines' APIs expect them. Owns the bodies, never decides a status.

OpenAI's shape, {"error": {message, type, param, code}}, with the numeric status as `code` where the
error has no word of its own, as vLLM does; Anthropic's shape for /v1/messages. No prompt text and
no replica names enter a body.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from warmlane.router.errors import NoReplica, RequestError, RouterError
from warmlane.router.types import Kind

Headers = dict[str, str]

# (type, message) of errors that the data path itself answers, by status.
GENERIC: Final = {
    400: ("invalid_request_error", "the request is malformed"),
    401: ("authentication_error", "a valid API key is required"),
    404: ("not_found_error", "there is nothing at this path"),
    408: ("timeout_error", "the request did not arrive in time"),
    411: ("invalid_request_error", "a content length is required"),
    413: ("request_too_large", "the request body is too large"),
    429: ("rate_limit_error", "too many requests, try again later"),
    431: ("request_too_large", "the request head is too large"),
    500: ("internal_server_error", "the router failed"),
    501: ("not_implemented_error", "this is not supported"),
    502: ("upstream_error", "the engine could not be reached or answered badly"),
    503: ("service_unavailable_error", "no engine can serve this now, try again later"),
    504: ("timeout_error", "the engine did not answer in time"),
}
# Anthropic's names for the same (Messages API, section Errors).
ANTHROPIC: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# Advice for a client when the error brings none, in seconds.
RETRY_AFTER_S: Final = 1.0
RETRYABLE: Final = frozenset({429, 503})

_encode = msgspec.json.Encoder().encode


def problem(error: RouterError, kind: Kind = Kind.OTHER) -> tuple[int, Headers, bytes]:
    """(status, headers, body) for an error; header names in lower case.

    kind: of the request; picks the shape.
    """
    if isinstance(error, RequestError):
        return _answer(
            error.status, error.kind, error.message, kind, param=error.param, code=error.code
        )
    if isinstance(error, NoReplica):
        name = GENERIC.get(error.status, GENERIC[503])[0]
        wait_s = error.retry_after_s
        return _answer(
            error.status, name, error.message, kind, code=error.code, retry_after_s=wait_s
        )
    return generic(500, kind)


def generic(
    status: int, kind: Kind = Kind.OTHER, message: str = "", retry_after_s: float | None = None
) -> tuple[int, Headers, bytes]:
    """(status, headers, body) for an error of the data path. message: replaces the usual one."""
    name, usual = GENERIC.get(status, GENERIC[400 if status < 500 else 500])
    return _answer(status, name, message or usual, kind, retry_after_s=retry_after_s)


def stream_error_event(message: str, code: int | str, kind: Kind = Kind.OTHER) -> bytes:
    """The event that ends a stream which broke after its first byte. No [DONE] follows it."""
    body: dict[str, Any]
    if kind is Kind.MESSAGES:
        name = ANTHROPIC.get(code, "api_error") if isinstance(code, int) else "api_error"
        body = {"type": "error", "error": {"type": name, "message": message}}
        return b"event: error\ndata: " + _encode(body) + b"\n\n"
    name = GENERIC.get(code, GENERIC[502])[0] if isinstance(code, int) else "upstream_error"
    if kind is Kind.RESPONSES:
        body = {"type": "error", "code": str(code), "message": message, "param": None}
        body["error"] = {"message": message, "type": name, "param": None, "code": code}
        return b"event: error\ndata: " + _encode(body) + b"\n\n"
    body = {"error": {"message": message, "type": name, "param": None, "code": code}}
    return b"data: " + _encode(body) + b"\n\n"


def _answer(
    status: int,
    name: str,
    message: str,
    kind: Kind,
    *,
    param: str | None = None,
    code: str | None = None,
    retry_after_s: float | None = None,
) -> tuple[int, Headers, bytes]:
    headers = {"content-type": "application/json"}
    if status in RETRYABLE or retry_after_s is not None:
        seconds = RETRY_AFTER_S if retry_after_s is None else retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(seconds)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    body: dict[str, Any]
    if kind is Kind.MESSAGES:
        other = "invalid_request_error" if status < 500 else "api_error"
        error = {"type": ANTHROPIC.get(status, other), "message": message}
        body = {"type": "error", "error": error}
    else:
        body = {"error": {"message": message, "type": name, "param": param, "code": code or status}}
    return status, headers, _encode(body)
