"""The compiled head reader and editor against llhttp with lists of lines."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core import heads
from tests.core import twin_http_head as twin
from warmlane._core import http_edit, http_head
from warmlane._core.http_head import Framing, HeadError, read_request, read_response
from warmlane.router.requests import HOP_HEADERS, INTERNAL_HEADERS, INTERNAL_PREFIXES

ROUTER = Path(__file__).resolve().parents[2] / "router"
OPEN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\n"
END = b"\r\n"
RNG = random.Random(1)
RTSP = "DESCRIBE ANNOUNCE SETUP PLAY PAUSE TEARDOWN GET_PARAMETER SET_PARAMETER REDIRECT RECORD"
HTTP = (
    "DELETE GET HEAD POST PUT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK "
    "BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE "
    "PATCH PURGE MKCALENDAR LINK UNLINK SOURCE QUERY"
)


@settings(max_examples=1000, deadline=None)
@given(st.randoms(use_true_random=False))
def test_requests_as_llhttp_and_the_checks(rng: random.Random) -> None:
    heads.compare_request(heads.head_of(rng, answer=False), rng)


@settings(max_examples=1000, deadline=None)
@given(st.randoms(use_true_random=False))
def test_answers_as_llhttp_and_the_checks(rng: random.Random) -> None:
    heads.compare_answer(heads.head_of(rng, answer=True), rng)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    data = data.replace(b"\r\n\r\n", b"")
    for start in (b"", b"GET ", b"GET / HTTP/1.1\r\n", OPEN):
        heads.compare_request(start + data + END + END, RNG)
    for start in (b"", b"HTTP/1.1 ", ANSWER):
        heads.compare_answer(start + data + END + END, RNG)


def test_made_up_heads_are_not_refused_too_often() -> None:
    """A generator whose heads are all refused proves nothing."""
    rng = random.Random(5)
    read = 0
    for _ in range(1000):
        try:
            read_request(heads.head_of(rng, answer=False))
            read += 1
        except HeadError:
            pass
    assert 200 < read < 800


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"", b"ET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET", b"/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET ", b" HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET /a", b"b HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET /a?", b"b HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET http://a", b"b/c HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET http://", b" HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET http", b"//a HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"GET / HTTP/1.", b"\r\nHost: x\r\n\r\n"),
        (b"GET / HTTP/", b".1\r\nHost: x\r\n\r\n"),
        (b"GET / HTTP/1.1", b"\r\nHost: x\r\n\r\n"),
        (OPEN + b"X", b"Y: a\r\n\r\n"),
        (OPEN, b"Y: a\r\n\r\n"),
        (OPEN + b"XY: a", b"b\r\n\r\n"),
        (OPEN + b"XY: a", b"\r\n\r\n"),
        (OPEN + b"XY:", b"b\r\n\r\n"),
        (OPEN + b"XY: a\r", b"\r\n\r\n"),
        (OPEN + b"Content-Length: 1", b"\r\n\r\n"),
        (OPEN + b"Transfer-Encoding: chunked", b"\r\n\r\n"),
        (OPEN + b"Transfer-Encoding", b"chunked\r\n\r\n"),
    ],
)
def test_every_byte_in_every_place_of_a_request(before: bytes, behind: bytes) -> None:
    for byte in range(256):
        raw = before + bytes([byte]) + behind
        heads.compare_request(raw[: raw.index(b"\r\n\r\n") + 4], RNG)


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (b"HTTP/1.1", b"200 OK\r\nA: b\r\n\r\n"),
        (b"HTTP/1.1 20", b" OK\r\nA: b\r\n\r\n"),
        (b"HTTP/1.1 200", b"OK\r\nA: b\r\n\r\n"),
        (b"HTTP/1.1 200 O", b"K\r\nA: b\r\n\r\n"),
        (ANSWER + b"A: b", b"c\r\n\r\n"),
        (ANSWER + b"A", b"b\r\n\r\n"),
        (ANSWER + b"Content-Length: 1", b"\r\n\r\n"),
    ],
)
def test_every_byte_in_every_place_of_an_answer(before: bytes, behind: bytes) -> None:
    for byte in range(256):
        raw = before + bytes([byte]) + behind
        heads.compare_answer(raw[: raw.index(b"\r\n\r\n") + 4], RNG)


def test_a_bad_byte_anywhere_in_a_value_of_any_length() -> None:
    """Values are read 16 bytes at a time: no place may be special."""
    for size in range(70):
        value = b"a" * size
        assert read_request(OPEN + b"X-Session-Id: " + value + b"\r\n\r\n").headers == {
            b"x-session-id": value
        }
        for at in range(size):
            with_tab = value[:at] + b"\t" + value[at + 1 :]
            read_request(OPEN + b"A:" + with_tab + b"\r\n\r\n")
            for bad in (b"\n", b"\0", b"\x7f", b"\x1f", b"\r"):
                with pytest.raises(HeadError):
                    read_request(OPEN + b"A:" + with_tab[:at] + bad + value[at + 1 :] + b"\r\n\r\n")


@pytest.mark.parametrize("method", [*HTTP.split(), *RTSP.split(), "FLUSH", "BREW", "G", "GETS"])
def test_methods(method: str) -> None:
    raw = b"%b / HTTP/1.1\r\nHost: x\r\n\r\n" % method.encode()
    heads.compare_request(raw, RNG)
    if method in HTTP.split():
        assert read_request(raw).method == method.encode()


@pytest.mark.parametrize("raw", [OPEN + b"A: b\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"])
def test_a_head_that_is_cut_or_followed_by_bytes_is_refused(raw: bytes) -> None:
    assert read_request(raw).raw is raw
    for end in range(len(raw)):
        with pytest.raises(HeadError):
            read_request(raw[:end])
    with pytest.raises(HeadError, match="behind"):
        read_request(raw + b"x")


def test_an_answer_that_is_cut_is_refused() -> None:
    raw = ANSWER + b"Content-Length: 3\r\n\r\n"
    assert read_response(raw, False).framing is Framing.LENGTH
    assert read_response(raw, True).framing is Framing.NONE
    for end in range(len(raw)):
        with pytest.raises(HeadError):
            read_response(raw[:end], False)
    with pytest.raises(HeadError, match="behind"):
        read_response(raw + b"x", False)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\n" + OPEN + END, 400),  # llhttp skips it; it would have become part of the method
        (b"\r" + OPEN + END, 400),
        (OPEN + b"Content-Length: 5\t\r\n\r\n", 400),
        (OPEN + b"Transfer-Encoding: chunked\t\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"PRI / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 501),
        (OPEN + b"Upgrade: h2c\r\n\r\n", 501),
    ],
)
def test_refusals_by_status(raw: bytes, status: int) -> None:
    with pytest.raises(HeadError) as caught:
        read_request(raw)
    assert caught.value.args[0] == status


@pytest.mark.parametrize(
    "raw",
    [
        ANSWER + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ANSWER + b"Transfer-Encoding: chunked\t\r\n\r\n",
        ANSWER + b"Content-Length: 1000000000000000000\r\n\r\n",
        b"HTTP/1.1 200 O\0K\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 101 X\r\n\r\n",
    ],
)
def test_answers_refused_although_llhttp_might_pass_them(raw: bytes) -> None:
    with pytest.raises(HeadError):
        read_response(raw, False)


def test_close_in_one_of_several_connection_headers_counts() -> None:
    lines = b"Connection: close\r\nConnection: x-a\r\n"
    assert read_request(OPEN + lines + END).close
    assert read_response(ANSWER + lines + END, False).close


def test_hop_and_internal_headers_never_reach_a_replica() -> None:
    names = [*HOP_HEADERS, *INTERNAL_HEADERS, *(prefix + b"a" for prefix in INTERNAL_PREFIXES)]
    for name in set(names) - {b"upgrade", b"transfer-encoding", b"trailer"}:
        for spelt in (name, name.upper(), name.title()):
            head = read_request(OPEN + spelt + b": x-a\r\nX-B: c\r\n\r\n")
            made = http_edit.request_bytes(head, b"Host: y", b"", 0)
            assert made == OPEN.replace(b"x\r\n", b"y\r\n") + b"X-B: c\r\n\r\n"


@pytest.mark.parametrize("size", [3900, 3970, 4010, 4030, 4096, 5000, 60_000])
def test_heads_too_large_for_the_stack(size: int) -> None:
    heads.compare_request(OPEN + b"A: " + b"b" * size + b"\r\nTE: x\r\n\r\n", RNG)
    heads.compare_answer(ANSWER + b"A: " + b"b" * size + b"\r\nTE: x\r\n\r\n", RNG)


def test_a_failing_allocation_is_reported_and_leaves_nothing_behind() -> None:
    raw = OPEN + b"A: " + b"b" * 9000 + b"\r\n\r\n"
    head = read_request(raw)
    answer = read_response(ANSWER + b"A: " + b"b" * 9000 + b"\r\n\r\n", False)
    for _ in range(2):
        http_edit.fail_allocation_after(0)
        with pytest.raises(MemoryError):
            http_edit.request_bytes(head, b"Host: x", b"", 0)
        http_edit.fail_allocation_after(0)
        with pytest.raises(MemoryError):
            http_edit.response_bytes(answer, close=True, dechunk=False, extra=b"")
    assert http_edit.request_bytes(head, b"Host: x", b"", 0) == raw


def test_an_untouched_answer_is_the_same_object() -> None:
    head = read_response(ANSWER + b"Content-Length: 3\r\n\r\n", False)
    assert http_edit.response_bytes(head, close=False, dechunk=False, extra=b"") is head.raw


def test_heads_are_made_by_their_readers_only() -> None:
    for kind in (http_head.RequestHead, http_head.ResponseHead):
        with pytest.raises(TypeError, match="is made by"):
            kind()


def test_every_header_that_the_router_reads_is_kept() -> None:
    """`headers` holds a few names only: whoever reads another one must add it to the reader."""
    read = set()
    for path in [*(ROUTER / "proxy").glob("*.py"), ROUTER / "requests.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            named: list[ast.expr] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "get" and "headers" in ast.unparse(node.func.value):
                    named = node.args[:1]
            elif isinstance(node, ast.Subscript) and "headers" in ast.unparse(node.value):
                named = [node.slice]
            elif isinstance(node, ast.Compare) and "headers" in ast.unparse(node.comparators[-1]):
                named = [node.left]
            for each in named:
                if isinstance(each, ast.Constant) and isinstance(each.value, bytes):
                    read.add(each.value)
    assert {b"content-type", b"authorization"} <= read
    kept = {name for name in read if name.startswith(INTERNAL_PREFIXES)}
    assert read - kept <= http_head.READ_HEADERS


def test_many_named_headers_cost_no_more_than_their_number() -> None:
    """Names are looked up, not compared with each other: this head would take minutes."""
    names = [b"n%d" % n for n in range(40_000)]
    raw = OPEN + b"Connection: " + b",".join(names) + END
    raw += b"".join(b"%b: x\r\n" % name for name in names) + END
    head = read_request(raw)
    made = http_edit.request_bytes(head, b"Host: x", b"", 0)
    assert made == OPEN + END
    assert twin.read_request(raw).listed == set(names)
