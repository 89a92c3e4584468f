"""Response heads of replicas: read by llhttp, edited line by line, as in `request_head`.

Cost: about 2 us; without hop lines the raw bytes pass as they are.
"""

from __future__ import annotations

from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from warmlane.router.proxy.wire import (
    CRLF,
    VERSIONS,
    Framing,
    cut_lines,
    listed_names,
    tokens_of,
)
from warmlane.router.requests import HOP_HEADERS

_WATCHED: Final = HOP_HEADERS | {b"content-length", b"content-type", b"content-encoding"}


class BadAnswer(Exception):
    """A replica sent what is not HTTP/1. The connection cannot be used any more."""


class ResponseHead:
    """One response head as it arrived."""

    __slots__ = (
        "close",
        "encoded",
        "framing",
        "json",
        "length",
        "listed",
        "raw",
        "sse",
        "status",
        "watched",
    )

    raw: bytes
    status: int
    watched: list[tuple[int, bytes, bytes]]
    listed: frozenset[bytes]
    framing: Framing
    length: int
    close: bool  # the replica will close this connection
    sse: bool
    json: bool
    encoded: bool  # a content coding hides the text from us


class ResponseReader:
    """llhttp for the answers on one connection to a replica."""

    __slots__ = ("_count", "_parser", "_watched")

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._watched: list[tuple[int, bytes, bytes]] = []
        self._count = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        count = self._count = self._count + 1
        name = name.lower()
        if name in _WATCHED:
            self._watched.append((count, name, value))

    def read(self, raw: bytes, to_head: bool) -> ResponseHead:
        """The head in `raw`. Raises BadAnswer when a replica sends what is not HTTP/1."""
        self._watched = []
        self._count = 0
        parser = self._parser
        try:
            parser.feed_data(raw)
        except HttpParserUpgrade:
            raise BadAnswer("the replica switched protocols") from None
        except HttpParserError as error:
            raise BadAnswer(f"malformed answer: {error}") from None
        head = ResponseHead()
        head.raw = raw
        head.watched = self._watched
        head.status = parser.get_status_code()
        if raw[:8] not in VERSIONS or raw.count(CRLF) != self._count + 2:
            raise BadAnswer("malformed answer head")
        _read_response(head, raw.startswith(b"HTTP/1.0"), to_head)
        return head

    def skip_body(self, body: bytes) -> None:
        """Keep llhttp in step, as in RequestReader; b"" stands for a chunked body."""
        self._parser.feed_data(body or b"0\r\n\r\n")

    def reset(self) -> None:
        """After an answer whose body never came (HEAD): llhttp would wait for it."""
        self._parser = HttpResponseParser(self)


def _read_response(head: ResponseHead, http10: bool, to_head: bool) -> None:
    head.listed = frozenset()
    head.close = http10
    head.sse = head.json = head.encoded = False
    head.length = 0
    framing = Framing.CLOSE
    for _, name, value in head.watched:
        if name == b"content-type":
            kind = value[:17].lower()
            head.sse = kind == b"text/event-stream"
            head.json = kind.startswith(b"application/json")
        elif name == b"content-length":
            framing = Framing.LENGTH
            head.length = int(value)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise BadAnswer("unknown transfer coding")
            framing = Framing.CHUNKED
        elif name == b"connection":
            tokens = tokens_of(value)
            head.close = b"close" in tokens or (http10 and b"keep-alive" not in tokens)
            head.listed |= listed_names(tokens)
        elif name == b"content-encoding":
            head.encoded = value.strip().lower() != b"identity"
    empty = framing is Framing.LENGTH and head.length == 0
    if to_head or empty or head.status in (204, 304) or head.status < 200:
        framing = Framing.NONE
    if framing is Framing.CLOSE:
        head.close = True
    head.framing = framing


def response_bytes(head: ResponseHead, *, close: bool, dechunk: bool, extra: bytes) -> bytes:
    """The head for the client: hop lines cut, our own Connection and debug lines added.

    dechunk: the client speaks HTTP/1.0 and gets the payload up to the end of the connection.
    """
    raw = head.raw
    drop = [
        index
        for index, name, _ in head.watched
        if name in HOP_HEADERS
        and (name != b"transfer-encoding" or dechunk)
        and (name != b"trailer" or dechunk)
    ]
    if not (drop or close or extra or head.listed) and raw.startswith(b"HTTP/1.1"):
        return raw
    lines = raw.split(CRLF)
    cut_lines(lines, drop, head.listed)
    lines[0] = b"HTTP/1.1" + lines[0][8:]
    if close:
        lines.insert(-2, b"Connection: close")
    if extra:
        lines.insert(-2, extra)
    return CRLF.join(lines)
