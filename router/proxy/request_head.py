"""Request heads: what the compiled `http_head` and `http_edit` know of them, as the proxy's errors.

Nothing is rebuilt: a head travels as the bytes that arrived, and only lines that must not cross a
hop (or must change, such as Host) are cut out or replaced. Never guesses: a head that two
implementations could read differently is refused. The rules are in src_ext/http_text.h and
http_head.pyx; tests/core/twin_http_head.py says the same on top of llhttp.
"""

from __future__ import annotations

import re
from typing import Final

from warmlane._core.http_edit import request_bytes
from warmlane._core.http_head import HeadError, RequestHead, read_request
from warmlane.router.errors import RequestError
from warmlane.router.proxy.wire import CRLF, KEPT
from warmlane.router.requests import HOP_HEADERS, is_internal

__all__ = ["RequestHead", "check_start", "read_request_head", "request_bytes", "safe_trailer"]

_START: Final = re.compile(rb"[A-Z-]{1,24}(?: |\Z)")
# Besides the internal ones and those that Connection may not name either.
_NO_TRAILER: Final = HOP_HEADERS | KEPT | {b"expect"}


def read_request_head(raw: bytes) -> RequestHead:
    """The head in `raw`, which ends with the empty line. Raises RequestError."""
    try:
        return read_request(raw)
    except HeadError as error:
        status, message = error.args
        raise RequestError(status, message) from None


def check_start(data: bytes, seen: int = 0) -> None:
    """Refuse the beginning of a head that cannot become one, instead of waiting for its end.

    seen: bytes of it that were checked before, when it was shorter: a head that comes in drops
    costs no more than one that comes at once.
    """
    ends = data.count(CRLF, seen - 1 if seen else 0)
    if _START.match(data) is None or data.count(b"\n", seen) != ends:
        raise RequestError(400, "malformed request")


def safe_trailer(trailer: bytes) -> bytes:
    """Trailer lines that may pass: none that frames, routes or authenticates the message."""
    if not trailer:
        return b""
    lines = [line for line in trailer.split(CRLF) if line]
    kept = [line + CRLF for line in lines if _may_trail(line.partition(b":")[0].lower())]
    return b"".join(kept)


def _may_trail(name: bytes) -> bool:
    return name == b"trailer" or (name not in _NO_TRAILER and not is_internal(name))
