"""The strict chunk reader, whole, cut anywhere, and against h11's reader."""

from __future__ import annotations

from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmlane.router.proxy.chunked import BadChunk, ChunkReader
from warmlane.router.proxy.relay import Relay
from warmlane.router.proxy.response_head import read_response_head

from .engine import DONE, LAST, SSE_HEAD, STREAM, chunk

bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


def cuts(data: bytes, at: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *[each % (len(data) + 1) for each in at]})
    return [data[start:end] for start, end in pairwise(marks)]


@given(bodies, st.lists(st.integers(0, 10_000), max_size=20), st.binary(max_size=20))
def test_any_cut_gives_the_payload_and_the_end(
    parts: list[bytes], at: list[int], behind: bytes
) -> None:
    data = chunk(*parts) + LAST
    reader = ChunkReader()
    payload, left = b"", b""
    for piece in cuts(data + behind, at):
        if reader.done:
            left += piece
            continue
        payload += reader.feed(piece)
        left += piece[reader.used :]
    assert reader.done
    assert payload == b"".join(parts)
    assert left == behind


@given(bodies, st.lists(st.integers(0, 10_000), max_size=20))
def test_aligned_reads_can_be_passed_raw(parts: list[bytes], at: list[int]) -> None:
    """Raw bytes of aligned reads and chunks of our own for the others make the same payload."""
    reader, passed = ChunkReader(), b""
    for piece in cuts(chunk(*parts) + LAST, at):
        payload = reader.feed(piece)
        if reader.aligned:
            passed += piece
        else:
            passed += chunk(payload) if payload else b""
            passed += LAST if reader.done else b""
    again = ChunkReader()
    assert again.feed(passed) == b"".join(parts)
    assert again.done
    assert again.used == len(passed)


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text("0123456789abcdef;= \r\n", max_size=60).map(str.encode))
def test_what_it_accepts_h11_reads_alike(data: bytes) -> None:
    reader = ChunkReader()
    try:
        payload = reader.feed(data)
    except BadChunk:
        return
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + data)
    seen = b""
    while True:
        event = parser.next_event()
        if isinstance(event, h11.Data):
            seen += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert reader.done
            assert parser.trailing_data[0] == data[reader.used :]
            break
        elif event is h11.NEED_DATA:
            assert not reader.done
            break
    assert seen == payload


@pytest.mark.parametrize(
    "data",
    [
        b"g\r\n",
        b"1;\x00",
        b"-1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1\n",
        b"1\r\nab\r\n",
        b"\r\n",
        b"0\r\nx\r\n\r\n",
    ],
)
def test_refused_whole_and_bytewise(data: bytes) -> None:
    with pytest.raises(BadChunk):
        ChunkReader().feed(data)
    reader = ChunkReader()
    with pytest.raises(BadChunk):
        for at in range(len(data)):
            reader.feed(data[at : at + 1])


@given(st.lists(st.integers(0, 100_000), max_size=30), st.integers(0, 100_000))
def test_a_stream_cut_anywhere_and_broken_anywhere_ends_well(at: list[int], end: int) -> None:
    """Only whole events, then one error event and a clean end of the message; never [DONE]."""
    raw = chunk(*STREAM)
    raw = raw[: end % (len(raw) - len(chunk(DONE)))]
    reader, relay = ChunkReader(), Relay()
    head = read_response_head(SSE_HEAD, False)
    sent = relay.head(head, http10=False, close=False, extra=b"")
    for piece in cuts(raw, at):
        payload = reader.feed(piece)
        sent += relay.body(piece, payload, reader.aligned, False)
    sent += relay.broken(b"data: broken\n\n") or b""
    check = ChunkReader()
    body = check.feed(sent.partition(b"\r\n\r\n")[2])
    assert check.done
    events = body.split(b"\n\n")
    assert events[-2:] == [b"data: broken", b""]
    assert [each + b"\n\n" for each in events[:-2]] == STREAM[: len(events) - 2]
