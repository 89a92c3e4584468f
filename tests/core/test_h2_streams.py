"""Messages out of DATA frames, against the plain twin; charges; the coding of grpc-message."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import twin_h2_streams as twin
from tests.core.h2_rig import LIMITS, framed

streams = pytest.importorskip(
    "warmlane._core.h2.streams", reason="the native transport is not built: install libnghttp2-dev"
)


def shared(**changes: float) -> streams.Shared:
    return streams.Shared(**(LIMITS | changes))


def fed(data: bytes, cuts: list[int], **changes: float) -> tuple[list[bytes], int, int]:
    """Messages, code and charged bytes after `data` in pieces."""
    limits = shared(**changes)
    stream = streams.Stream(limits, None, 1)
    found: list[bytes] = []
    code = 0
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if not code:
            more, code = stream.feed_bytes(data[start:stop])
            found += more
    held = limits.held_bytes
    del stream
    assert limits.held_bytes == 0  # a stream that goes takes its charges along
    return found, code, held


messages = st.lists(st.binary(max_size=40) | st.just(b"x" * 70_000), max_size=6)


@given(messages, st.data())
def test_messages_are_the_twins_whatever_the_cuts(sent: list[bytes], data: st.DataObject) -> None:
    raw = b"".join(framed(message) for message in sent)
    tail = data.draw(st.binary(max_size=8))
    raw += tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    assembly = twin.Assembly(100_000, 1 << 40)
    assert fed(raw, cuts, message_bytes=100_000)[:2] == assembly.feed(raw)


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (struct.pack(">BI", 1, 4), twin.COMPRESSED),
        (struct.pack(">BI", 2, 4), twin.BAD_FLAG),
        (struct.pack(">BI", 255, 4), twin.BAD_FLAG),
        (struct.pack(">BI", 0, 1001), twin.TOO_LONG),
        (struct.pack(">BI", 0, 0xFFFFFFFF), twin.TOO_LONG),
        (struct.pack(">BI", 0, 1000), twin.FED),
    ],
)
def test_bad_prefixes(head: bytes, code: int) -> None:
    for cut in range(len(head) + 1):
        assert fed(head, [cut], message_bytes=1000)[:2] == ([], code)


def test_a_claimed_length_reserves_little() -> None:
    """Twenty bytes that promise 4 MB cost 64 KB until more of them come."""
    found, code, held = fed(struct.pack(">BI", 0, 4_000_000) + b"x" * 15, [])
    assert (found, code) == ([], 0)
    assert held <= 65_536 + 64


def test_charges_grow_with_the_bytes_and_stop_at_the_stream() -> None:
    raw = framed(b"y" * 300_000)
    assert fed(raw, list(range(1000, len(raw), 1000)), stream_bytes=400_000)[1] == 0
    found, code, _ = fed(raw, list(range(1000, len(raw), 1000)), stream_bytes=200_000)
    assert (found, code) == ([], twin.STREAM_FULL)


def test_charges_stop_at_all_streams_together() -> None:
    limits = shared(held_limit_bytes=250_000)
    first, second = (streams.Stream(limits, None, sid) for sid in (1, 3))
    assert first.feed_bytes(framed(b"a" * 150_000)) == ([b"a" * 150_000], 0)
    assert second.feed_bytes(framed(b"b" * 150_000)) == ([], twin.SERVER_FULL)
    assert limits.held_bytes == 150_064 and limits.peak_held_bytes > 250_000
    del first, second
    assert limits.held_bytes == 0


@given(st.text(max_size=50))
def test_grpc_message_is_percent_encoded(text: str) -> None:
    assert streams.percent_encode(text) == twin.percent_encode(text)


def test_grpc_message_is_cut() -> None:
    assert streams.percent_encode("%" * 5000) == b"%25" * 1024
    assert streams.percent_encode("é\n") == b"%C3%A9%0A"
