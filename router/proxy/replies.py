"""Answers that the router makes itself, as bytes of HTTP/1.1."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from warmlane.router.errors import RouterError
from warmlane.router.problems import problem
from warmlane.router.types import Kind

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON: Final = {"content-type": "application/json"}
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


def reply(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    close: bool = False,
    to_head: bool = False,
) -> bytes:
    """One whole response. to_head: the request was HEAD, so the body stays away."""
    lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"content-length: {len(body)}")
    if close:
        lines.append("connection: close")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if to_head else head + body


def refusal(
    error: RouterError, kind: Kind = Kind.OTHER, *, close: bool = False, to_head: bool = False
) -> bytes:
    """An error object in the shape that clients of this kind expect."""
    status, headers, body = problem(error, kind)
    return reply(status, headers, body, close=close, to_head=to_head)
