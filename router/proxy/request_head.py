"""Request heads: read by llhttp, checked again here, edited line by line.

Nothing is rebuilt: a head travels as the bytes that arrived, and only lines that must not cross a
hop (or must change, such as Host) are cut out or replaced. llhttp is strict but not strict enough
for a proxy; what it lets through and we refuse stands in `_read_request_line` and
`_check_request`. Never guesses: a head that two implementations could read differently is refused.

Cost: about 2.5 us for ten headers, most of it llhttp's callbacks.
"""

from __future__ import annotations

import re
from typing import Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from warmlane.router.errors import RequestError
from warmlane.router.proxy.wire import CRLF, KEPT, VERSIONS, cut_lines, listed_names, tokens_of
from warmlane.router.requests import HOP_HEADERS, INTERNAL_HEADERS, INTERNAL_PREFIXES, is_internal

# Lines that matter here. All of them but the last three are cut; Trailer stays, as trailers do.
_WATCHED: Final = (
    (HOP_HEADERS - {b"trailer"})
    | INTERNAL_HEADERS
    | {b"expect", b"host", b"content-length", b"transfer-encoding"}
)
_START: Final = re.compile(rb"[A-Z-]{1,24}(?: |\Z)")


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
        if name in _WATCHED or (name[0] == 120 and name.startswith(INTERNAL_PREFIXES)):
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
    return name not in _WATCHED and name not in KEPT and not is_internal(name)


def _read_request_line(head: RequestHead) -> None:
    line = head.raw[: head.raw.index(CRLF)]
    parts = line.split(b" ")
    # llhttp takes several blanks between the parts, no version at all, and HTTP/2.0.
    if len(parts) != 3:
        raise RequestError(400, "malformed request line")
    head.method, target, version = parts
    http10 = VERSIONS.get(version)
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
    if value in (b"keep-alive", b"Keep-Alive"):  # what most clients send
        return
    tokens = tokens_of(value)
    if b"close" in tokens:
        head.close = True
    head.listed |= listed_names(tokens)


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
    for index, name, _ in head.watched:
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
    if drop or head.listed:
        cut_lines(lines, drop, head.listed)
    if head.http10 or not head.raw.startswith(head.target, len(head.method) + 1):
        lines[0] = b"%b %b HTTP/1.1" % (head.method, head.target)
    if not hosts:
        lines.insert(1, host_line)
    if extra:
        lines.insert(-2, extra)
    return CRLF.join(lines)
