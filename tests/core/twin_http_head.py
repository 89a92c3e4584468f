"""Heads by llhttp: the oracle of `_core.http_head`.

llhttp reads the head and says what it calls malformed; the checks that a proxy needs besides stand
here in plain Python. Where the compiled module is meant to be stricter than this,
`stricter_request` and `stricter_answer` say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, HttpResponseParser

from warmlane._core.http_head import Framing

CRLF = b"\r\n"
KEPT = frozenset({b"host", b"content-length", b"transfer-encoding", b"authorization"})
VERSIONS = {b"HTTP/1.1": False, b"HTTP/1.0": True}

TAB_BEHIND = re.compile(
    rb"\r\n(?:content-length|transfer-encoding):[^\r]*\t[ \t]*\r\n", re.IGNORECASE
)


class Refused(Exception):
    """args: the status."""


@dataclass
class Head:
    """Either kind of head; see http_head.pxd for the fields."""

    raw: bytes
    lines: list[tuple[bytes, bytes]] = field(default_factory=list)  # lower-case name, value
    listed: frozenset[bytes] = frozenset()
    http10: bool = False
    close: bool = False
    length: int = 0
    method: bytes = b""
    target: bytes = b""
    path: str = ""
    chunked: bool = False
    expect: bool = False
    status: int = 0
    framing: Framing = Framing.CLOSE
    sse: bool = False
    json: bool = False
    encoded: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.lines.append((name.lower(), value.strip(b" \t")))

    def listen(self, value: bytes) -> frozenset[bytes]:
        """Take in a Connection header; its tokens."""
        tokens = frozenset([token.strip(b" \t") for token in value.lower().split(b",")])
        self.listed |= tokens - KEPT - {b"close", b"keep-alive", b""}
        return tokens


def stricter_request(raw: bytes) -> bool:
    """Whether the compiled reader refuses what llhttp passes: empty lines before the
    request, a tab behind a length (behind a coding llhttp refuses it in requests itself), and the
    method PRI, after which llhttp waits for the rest of HTTP/2's preface."""
    return raw.startswith((b"\r", b"\n", b"PRI ")) or TAB_BEHIND.search(raw) is not None


def stricter_answer(raw: bytes) -> bool:
    """The same for answers: a tab behind a length or coding, control characters in the reason, a
    status below 100, a length of more than 18 digits, chunked named twice."""
    reason = raw[12 : raw.index(CRLF)]
    if raw[9:10] == b"0" or any((byte < 32 and byte != 9) or byte == 127 for byte in reason):
        return True
    if TAB_BEHIND.search(raw):
        return True
    head = Head(raw)
    HttpResponseParser(head).feed_data(raw)
    names = [name for name, _ in head.lines]
    digits = [len(value) for name, value in head.lines if name == b"content-length"]
    return max(digits, default=0) > 18 or names.count(b"transfer-encoding") > 1


def read_request(raw: bytes) -> Head:
    head = Head(raw)
    try:
        HttpRequestParser(head).feed_data(raw)
    except HttpParserUpgrade:
        raise Refused(501) from None
    except HttpParserError:
        raise Refused(400) from None
    parts = raw[: raw.index(CRLF)].split(b" ")
    # llhttp takes several blanks between the parts, no version at all, and HTTP/2.0.
    if len(parts) != 3:
        raise Refused(400)
    head.method, target, version = parts
    if version not in VERSIONS:
        raise Refused(505)
    head.close = head.http10 = VERSIONS[version]
    head.target = target if target[:1] == b"/" else _origin_form(head.method, target)
    head.path = head.target.partition(b"?")[0].decode("ascii", "replace")
    _check_request(head)
    return head


def _origin_form(method: bytes, target: bytes) -> bytes:
    if method == b"OPTIONS" and target == b"*":
        return target
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise Refused(400)
    slash = rest.find(b"/")
    query = rest.find(b"?")
    if slash < 0 or 0 <= query < slash:
        return b"/" if query < 0 else b"/" + rest[query:]
    return rest[slash:]


def _check_request(head: Head) -> None:
    names = [name for name, _ in head.lines]
    for name, value in head.lines:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise Refused(400)
            head.length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or head.http10:
                raise Refused(400)
            head.chunked = True
        elif name == b"connection":
            head.close = b"close" in head.listen(value) or head.close
        elif name == b"upgrade":
            raise Refused(501)
        elif name == b"expect":
            head.expect = value.lower() == b"100-continue" and not head.http10
    if names.count(b"host") > 1 or (b"host" not in names and not head.http10):
        raise Refused(400)
    if names.count(b"content-length") + names.count(b"transfer-encoding") > 1:
        raise Refused(400)
    # One line per header, or llhttp and line editing see different headers.
    if head.raw.count(CRLF) != len(names) + 2:
        raise Refused(400)


def read_response(raw: bytes, to_head: bool) -> Head:
    head = Head(raw)
    parser = HttpResponseParser(head)
    try:
        parser.feed_data(raw)
    except (HttpParserUpgrade, HttpParserError):
        raise Refused(502) from None
    head.status = parser.get_status_code()
    if raw[:8] not in VERSIONS or raw.count(CRLF) != len(head.lines) + 2:
        raise Refused(502)
    head.http10 = VERSIONS[raw[:8]]
    tokens: frozenset[bytes] = frozenset()
    for name, value in head.lines:
        if name == b"content-type":
            head.sse = value[:17].lower() == b"text/event-stream"
            head.json = value.lower().startswith(b"application/json")
        elif name == b"content-length":
            head.framing, head.length = Framing.LENGTH, int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Refused(502)
            head.framing = Framing.CHUNKED
        elif name == b"connection":
            tokens |= head.listen(value)
        elif name == b"content-encoding":
            head.encoded = value.lower() != b"identity"
    head.close = b"close" in tokens or (head.http10 and b"keep-alive" not in tokens)
    empty = head.framing is Framing.LENGTH and head.length == 0
    if to_head or empty or head.status in (204, 304) or head.status < 200:
        head.framing = Framing.NONE
    if head.framing is Framing.CLOSE:
        head.close = True
    return head
