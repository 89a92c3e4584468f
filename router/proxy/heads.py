"""Request and response heads: read by llhttp, checked again here, edited line by line.

Nothing is rebuilt: a head travels as the bytes that arrived, and only lines that must not cross a
hop (or must change, such as Host) are cut out or replaced. llhttp is strict but not strict enough
for a proxy; what it lets through and we refuse stands in `_check_request`. Never guesses: a head
that two implementations could read differently is refused.

Cost: about 2.5 us for a request of ten headers, most of it llhttp's callbacks.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from httptools import (
    HttpParserError,
    HttpParserUpgrade,
    HttpRequestParser,
    HttpResponseParser,
)

from warmlane.router.errors import RequestError
from warmlane.router.requests import HOP_HEADERS, INTERNAL_HEADERS, INTERNAL_PREFIXES, is_internal

CRLF: Final = b"\r\n"
END: Final = b"\r\n\r\n"
# Names that a Connection header may not remove: they frame or address the message.
_KEPT: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization"})
_DROPPED: Final = (
    HOP_HEADERS | INTERNAL_HEADERS | {b"expect"}
) - {b"transfer-encoding", b"trailer"}
_WATCHED_REQUEST: Final = _DROPPED | {b"host", b"content-length", b"transfer-encoding"}
_WATCHED_RESPONSE: Final = HOP_HEADERS | {
    b"content-length",
    b"content-type",
    b"content-encoding",
}
_START: Final = re.compile(rb"[A-Z-]{1,24}(?: |\Z)")
_VERSIONS: Final = {b"HTTP/1.1": False, b"HTTP/1.0": True}


class BadAnswer(Exception):
    """A replica sent what is not HTTP/1. The connection cannot be used any more."""


class Framing(IntEnum):
    """How the end of a message's body is found."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3  # until the peer closes: responses of HTTP/1.0 servers only


class RequestHead:
    """One request head as it arrived, with what the proxy needs to know about it."""

    __slots__ = (
        "chunked",
        "close",
        "expect",
        "headers",
        "http10",
        "length",
        "listed",
        "method",
        "path",
        "raw",
        "target",
        "watched",
    )

    raw: bytes  # request line to the empty line, both included
    method: bytes
    target: bytes  # origin form
    path: str  # without the query
    headers: dict[bytes, bytes]  # lower-case names; of repeated headers the last
    watched: list[tuple[int, bytes, bytes]]  # line number, lower-case name, value
    listed: frozenset[bytes]  # header names that Connection says are for this hop only
    http10: bool
    close: bool  # the client wants the connection closed after the answer
    chunked: bool
    length: int  # Content-Length, 0 if absent
    expect: bool  # Expect: 100-continue


class RequestReader:
    """llhttp with the memory of one client connection."""

    __slots__ = ("_count", "_headers", "_parser", "_watched")

    def __init__(self) -> None:
        self._parser = HttpRequestParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._watched: list[tuple[int, bytes, bytes]] = []
        self._count = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        count = self._count = self._count + 1
        name = name.lower()
        self._headers[name] = value
        # 120 is "x": most names fail this comparison, which is cheaper than the second.
        if name in _WATCHED_REQUEST or (name[0] == 120 and name.startswith(INTERNAL_PREFIXES)):
            self._watched.append((count, name, value.strip(b" \t")))

    def read(self, raw: bytes) -> RequestHead:
        """The head in `raw`, which ends with the empty line. Raises RequestError."""
        self._headers = {}
        self._watched = []
        self._count = 0
        try:
            self._parser.feed_data(raw)
        except HttpParserUpgrade:
            raise RequestError(501, "CONNECT and Upgrade are not supported") from None
        except HttpParserError as error:
            raise RequestError(400, f"malformed request: {error}") from None
        head = RequestHead()
        head.raw = raw
        head.headers = self._headers
        head.watched = self._watched
        _read_request_line(head)
        _check_request(head, self._count)
        return head

    def skip_body(self, head: RequestHead, body: bytes) -> None:
        """Keep llhttp in step with a body that was framed elsewhere: cheap, it only counts.

        For a chunked body the smallest one stands for it.
        """
        if head.chunked:
            self._parser.feed_data(b"0\r\n\r\n")
        elif body:
            self._parser.feed_data(body)


def check_start(data: bytes) -> None:
    """Refuse the beginning of a head that cannot become one, instead of waiting for its end."""
    if _START.match(data) is None or data.count(b"\n") != data.count(CRLF):
        raise RequestError(400, "malformed request")


def safe_trailer(trailer: bytes) -> bytes:
    """Trailer lines that may pass: none that frames, routes or authenticates the message."""
    if not trailer:
        return b""
    lines = [line for line in trailer.split(CRLF) if line]
    kept = [line + CRLF for line in lines if _may_trail(line.partition(b":")[0].lower())]
    return b"".join(kept)


def _may_trail(name: bytes) -> bool:
    return name not in _WATCHED_REQUEST and name not in _KEPT and not is_internal(name)


def _read_request_line(head: RequestHead) -> None:
    line = head.raw[: head.raw.index(CRLF)]
    parts = line.split(b" ")
    # llhttp takes several blanks between the parts, no version at all, and HTTP/2.0.
    if len(parts) != 3:
        raise RequestError(400, "malformed request line")
    head.method, target, version = parts
    http10 = _VERSIONS.get(version)
    if http10 is None:
        raise RequestError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    head.http10 = http10
    if target[:1] != b"/":
        target = _origin_form(head.method, target)
    head.target = target
    head.path = target.partition(b"?")[0].decode("ascii", "replace")


def _origin_form(method: bytes, target: bytes) -> bytes:
    if method == b"OPTIONS" and target == b"*":
        return target
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise RequestError(400, "the request target must be a path or an http URL")
    slash = rest.find(b"/")
    query = rest.find(b"?")
    if slash < 0 or 0 <= query < slash:
        return b"/" if query < 0 else b"/" + rest[query:]
    return rest[slash:]


def _check_request(head: RequestHead, count: int) -> None:
    hosts = lengths = codings = 0
    head.listed = frozenset()
    head.chunked = head.expect = False
    head.length = 0
    head.close = head.http10
    for _, name, value in head.watched:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            lengths += 1
            if not value.isdigit() or len(value) > 18:
                raise RequestError(400, "invalid Content-Length")
            head.length = int(value)
        elif name == b"transfer-encoding":
            codings += 1
            if value.lower() != b"chunked" or head.http10:
                raise RequestError(400, "the only transfer coding understood is chunked")
            head.chunked = True
        elif name == b"connection":
            _read_connection(head, value)
        elif name == b"upgrade":
            raise RequestError(501, "Upgrade is not supported")
        elif name == b"expect":
            head.expect = value.lower() == b"100-continue" and not head.http10
    if hosts > 1 or (hosts == 0 and not head.http10):
        raise RequestError(400, "exactly one Host header is required")
    if lengths + codings > 1:
        raise RequestError(400, "ambiguous body length")
    # One line per header, or llhttp and our line editing see different headers.
    if head.raw.count(CRLF) != count + 2:
        raise RequestError(400, "malformed header lines")


def _read_connection(head: RequestHead, value: bytes) -> None:
    value = value.lower()
    if value == b"keep-alive":  # what most clients send
        return
    names = frozenset(token.strip() for token in value.split(b","))
    if b"close" in names:
        head.close = True
    head.listed |= names - _KEPT - {b"close", b"keep-alive", b""}


def request_bytes(
    head: RequestHead, host_line: bytes, extra: bytes, length: int, trailer: bytes = b""
) -> bytes:
    """The head for a replica: hop and internal lines cut, Host of the replica, our length.

    extra: whole lines to add, each with its CRLF. length: of the body that will follow; -1 keeps
    the framing of the client (streamed through). trailer: a chunked body keeps its framing.
    """
    lines = head.raw.split(CRLF)
    drop: list[int] = []
    hosts = 0
    for index, name, value in head.watched:
        if name == b"host":
            hosts = 1
            lines[index] = host_line
        elif name == b"content-length":
            if 0 <= length != head.length:
                lines[index] = b"Content-Length: %d" % length
        elif name == b"transfer-encoding":
            if length >= 0 and not trailer:
                lines[index] = b"Content-Length: %d" % length
        else:
            drop.append(index)
    if head.listed:
        drop.extend(_listed_lines(lines, head.listed, drop))
    if drop:
        for index in sorted(drop, reverse=True):
            del lines[index]
    if head.http10 or not head.raw.startswith(head.target, len(head.method) + 1):
        lines[0] = b"%b %b HTTP/1.1" % (head.method, head.target)
    if not hosts:
        lines.insert(1, host_line)
    if extra:
        lines.insert(-2, extra)
    return CRLF.join(lines)


def _listed_lines(lines: list[bytes], names: frozenset[bytes], known: list[int]) -> list[int]:
    return [
        index
        for index, line in enumerate(lines)
        if index and index not in known and line.partition(b":")[0].lower() in names
    ]


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
        if name in _WATCHED_RESPONSE:
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
        if raw[:8] not in _VERSIONS or raw.count(CRLF) != self._count + 2:
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
            names = frozenset(token.strip() for token in value.lower().split(b","))
            head.close = b"close" in names or (http10 and b"keep-alive" not in names)
            head.listed |= names - _KEPT - {b"close", b"keep-alive", b""}
        elif name == b"content-encoding":
            head.encoded = value.strip().lower() != b"identity"
    if to_head or head.status in (204, 304) or head.status < 200:
        framing = Framing.NONE
    elif framing is Framing.LENGTH and head.length == 0:
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
    if head.listed:
        drop.extend(_listed_lines(lines, head.listed, drop))
    for index in sorted(drop, reverse=True):
        del lines[index]
    lines[0] = b"HTTP/1.1" + lines[0][8:]
    if close:
        lines.insert(-2, b"Connection: close")
    if extra:
        lines.insert(-2, extra)
    return CRLF.join(lines)
