"""Heads edited as lists of lines: the oracle of `_core.http_edit`."""

from __future__ import annotations

from tests.core.twin_http_head import CRLF, Head
from warmlane.router.requests import HOP_HEADERS, is_internal

CUT = (HOP_HEADERS - {b"trailer"}) | {b"expect"}


def request_bytes(head: Head, host_line: bytes, extra: bytes, length: int, trailer: bytes) -> bytes:
    lines = [head.raw.split(CRLF, 1)[0]]
    if head.http10 or lines[0].split(b" ")[1] != head.target:
        lines = [b"%b %b HTTP/1.1" % (head.method, head.target)]
    if b"host" not in dict(head.lines):
        lines.append(host_line)
    for line in head.raw.split(CRLF)[1:-2]:
        name = line.partition(b":")[0].lower()
        if name == b"host":
            line = host_line
        elif name == b"content-length":
            if 0 <= length != head.length:
                line = b"Content-Length: %d" % length
        elif name == b"transfer-encoding":
            if length >= 0 and not trailer:
                line = b"Content-Length: %d" % length
        elif name in CUT or is_internal(name) or name in head.listed:
            continue
        lines.append(line)
    return CRLF.join([*lines, *([extra] if extra else []), b"", b""])


def response_bytes(head: Head, *, close: bool, dechunk: bool, extra: bytes) -> bytes:
    kept_hops = set() if dechunk else {b"transfer-encoding", b"trailer"}
    drop = (HOP_HEADERS - kept_hops) | head.listed
    lines = head.raw.split(CRLF)
    kept = [line for line in lines[1:-2] if line.partition(b":")[0].lower() not in drop]
    ours = [b"Connection: close"] if close else []
    ours += [extra] if extra else []
    return CRLF.join([b"HTTP/1.1" + lines[0][8:], *kept, *ours, b"", b""])
