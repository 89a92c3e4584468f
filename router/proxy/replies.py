"""Answers that the router makes itself, as bytes of HTTP/1.1."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from warmlane.router.errors import RouterError
from warmlane.router.problems import problem
from warmlane.router.types import Kind

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON: Final = ((b"content-type", b"application/json"),)
_PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}


def reply(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    *,
    close: bool = False,
    to_head: bool = False,
) -> bytes:
    """One whole response. to_head: the request was HEAD, so the body stays away."""
    lines = [b"HTTP/1.1 %d %b" % (status, _PHRASES.get(status, b"Unknown"))]
    lines += [b"%b: %b" % pair for pair in headers]
    lines.append(b"content-length: %d" % len(body))
    if close:
        lines.append(b"connection: close")
    head = b"\r\n".join([*lines, b"", b""])
    return head if to_head else head + body


def refusal(
    error: RouterError, kind: Kind = Kind.OTHER, *, close: bool = False, to_head: bool = False
) -> bytes:
    """An error object in the shape that clients of this kind expect."""
    status, headers, body = problem(error, kind)
    return reply(status, headers, body, close=close, to_head=to_head)
