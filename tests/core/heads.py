"""Made-up heads, whole and damaged, and the comparison of the compiled reader with its twin."""

from __future__ import annotations

import random

from tests.core import twin_http_edit as edit_twin
from tests.core import twin_http_head as twin
from warmlane._core import http_edit, http_head
from warmlane.router.requests import is_internal

METHODS = (b"GET", b"POST", b"HEAD", b"OPTIONS", b"M-SEARCH", b"QUERY", b"PRI", b"CONNECT", b"get")
TARGETS = (
    *(b"/", b"/v1/chat/completions", b"/v1/models?a=b?c#d", b"*", b"*a", b"/\x80", b"//", b"abc"),
    *(
        b"http://a",
        b"HTTP://a:80/b?c",
        b"https://u@h?x/y",
        b"http://a@@b/",
        b"http://",
        b"ftp://a/",
    ),
    *(b"http://a#b", b"http:/a", b"http://[::1]/x", b"http://a\\b/"),
)
VERSIONS = (b"HTTP/1.1",) * 8 + (b"HTTP/1.0",) * 3 + (b"HTTP/2.0", b"HTTP/1.2", b"http/1.1", b"")
STATUSES = (b"200 OK", b"200", b"200 ", b"204 No", b"304 N", b"101 S", b"100 C", b"099 X", b"2 X")
NAMES = (
    *(b"Connection", b"Upgrade", b"Keep-Alive", b"TE", b"Trailer", b"Proxy-Connection"),
    *(b"Proxy-Authenticate", b"Proxy-Authorization", b"Transfer-Encoding", b"Content-Length"),
    *(b"Content-Type", b"Content-Encoding", b"Authorization", b"X-Api-Key", b"X-Session-Id"),
    *(b"Host", b"Expect", b"X-Warmlane-A", b"X-Gateway-B", b"X-Llm-D-C", b"X-Data-Parallel-Rank"),
    *(b"X-Warmlane", b"X-A", b"A", b"B" * 40, b"!#$%&'*+-.^_`|~09", b"Date", b"Server"),
)
VALUES = {
    b"Connection": (b"close", b"Keep-Alive", b"keep-alive, x-a", b"X-Api-Key ,close", b"upgrade",
                    b"host, content-length", b"", b",,", b"a b", b"trailer, te"),
    b"Content-Length": (b"0", b"5", b"00", b"7 ", b"\t12", b"1 2", b"+1", b"-1", b"0x2", b"",
                        b"1,1", b"9" * 18, b"1" * 19, b"9" * 20, b"3\t"),
    b"Transfer-Encoding": (b"chunked", b"Chunked", b"chunked ", b"gzip, chunked", b"gzip", b"",
                           b'"chunked"', b", chunked", b"xchunked", b"chunked\t"),
    b"Expect": (b"100-continue", b"100-Continue", b"x"),
    b"Content-Type": (b"text/event-stream", b"Text/Event-Stream; a", b"application/json; b", b""),
    b"Content-Encoding": (b"gzip", b"identity", b"Identity "),
}  # fmt: skip
PLAIN = (b"", b"x", b" a \t", b"\xff\x80", b"t\tt", b"long value " * 9, b"a: b")
DAMAGE = (b"\n", b"\r", b"\0", b" ", b"\t", b":", b"\x7f", b"\x0b", b"\r\n", b"\r\n ", b"@", b"#")
USUAL = (b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect")


def head_of(rng: random.Random, *, answer: bool) -> bytes:
    """One head: mostly whole, with headers that matter more often than others."""
    if answer:
        code = rng.choice((b"200 OK", rng.choice(STATUSES)))
        lines = [rng.choice(VERSIONS) + b" " + code]
    else:
        method, target = rng.choice(METHODS[:2]), b"/v1/chat/completions"
        if rng.random() < 0.3:
            method, target = rng.choice(METHODS), rng.choice(TARGETS)
        lines = [b" ".join((method, target, rng.choice(VERSIONS)))]
    names = [rng.choice(NAMES) for _ in range(rng.randrange(9))]
    if not answer and rng.random() < 0.9:
        names = [name for name in names if name != b"Host"]
        names.insert(rng.randint(0, len(names)), b"Host")
    if rng.random() < 0.6:  # or most heads have one framing header too many
        seen: set[bytes] = set()
        names = [
            name for name in names if name not in USUAL or not (name in seen or seen.add(name))
        ]
    for name in names:
        value = rng.choice(VALUES.get(name, PLAIN))
        if rng.random() < 0.3:
            name = rng.choice((name.lower(), name.upper(), name.swapcase()))
        lines.append(name + b":" + rng.choice((b" ", b" ", b"", b"\t  ")) + value)
    head = b"\r\n".join([*lines, b"", b""])
    if rng.random() < 0.3:
        at = rng.randrange(len(head))
        piece = rng.choice((bytes([rng.randrange(256)]), *DAMAGE))
        head = head[:at] + piece + head[at + rng.randint(0, 2) :]
    end = head.find(b"\r\n\r\n")  # the caller cuts there: nothing else is ever read
    return head[: end + 4] if end >= 0 else head + b"\r\n\r\n"


def same_fields(found: object, expected: object, names: str) -> None:
    for name in names.split():
        assert getattr(found, name) == getattr(expected, name), name


def compare_request(raw: bytes, rng: random.Random) -> None:
    """Both refuse, or both read the same and write the same."""
    try:
        expected = twin.read_request(raw)
    except twin.Refused:
        expected = None
    try:
        found = http_head.read_request(raw)
    except http_head.HeadError as error:
        assert error.args[0] in (400, 501, 505)
        assert expected is None or twin.stricter_request(raw)
        return
    assert expected is not None, "llhttp or a check refuses this"
    same_fields(found, expected, "raw method target path http10 close chunked expect length")
    wanted = {
        name: value
        for name, value in expected.lines
        if name in http_head.READ_HEADERS or is_internal(name)
    }
    assert found.headers == wanted
    extra = rng.choice((b"", b"X-data-parallel-rank: 3"))
    trailer = b"A: b\r\n" if found.chunked and rng.random() < 0.3 else b""
    for length in (-1, expected.length, 7, 10**17):
        args = (b"Host: engine:8000", extra, length, trailer)
        assert http_edit.request_bytes(found, *args) == edit_twin.request_bytes(expected, *args)


def compare_answer(raw: bytes, rng: random.Random) -> None:
    """The same for an answer."""
    to_head = rng.random() < 0.2
    try:
        expected = twin.read_response(raw, to_head)
    except twin.Refused:
        expected = None
    try:
        found = http_head.read_response(raw, to_head)
    except http_head.HeadError as error:
        assert error.args[0] == 502
        assert expected is None or twin.stricter_answer(raw)
        return
    assert expected is not None, "llhttp or a check refuses this"
    same_fields(found, expected, "raw status framing length close sse json encoded")
    for close in (False, True):
        for dechunk in (False, True):
            for extra in (b"", b"x-warmlane-replica: a\r\nx-warmlane-b: c"):
                made = http_edit.response_bytes(found, close=close, dechunk=dechunk, extra=extra)
                assert made == edit_twin.response_bytes(
                    expected, close=close, dechunk=dechunk, extra=extra
                )
