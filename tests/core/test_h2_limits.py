"""What a slow, greedy or hostile client of the native transport gets: every bound bites.

Clocks come in as arguments or do not count (refill rates of the test limits are zero).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import h2.settings
import hpack
import pytest

from tests.core.h2_rig import LIMITS, Echo, Loop, Pipe, Wire, framed
from tests.core.test_h2_connection import Make, Slow, native, streams, wire

__all__ = ["wire"]
ENHANCE_YOUR_CALM, REFUSED_STREAM, CANCEL, PROTOCOL_ERROR = 11, 7, 8, 1
HIGH = 256 * 1024  # answers in a stream from which on its window stays shut


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def heads(data: bytes) -> list[dict[str, str]]:
    """The header blocks of `data`, frames that the server sent from its first on."""
    decoder, found = hpack.Decoder(), []
    while data:
        size = int.from_bytes(data[:3], "big")
        if data[3] == 1:
            found.append({str(n): str(v) for n, v in decoder.decode(data[9 : 9 + size])})
        data = data[9 + size :]
    return found


FLOODS: dict[str, bytes] = {
    "settings": frame(4, 0, 0),
    "ping": frame(6, 0, 0, b"12345678"),
    "ping-ack": frame(6, 1, 0, b"12345678"),
    "priority": frame(2, 0, 1, struct.pack(">IB", 0, 5)),
    "window-update": frame(8, 0, 0, struct.pack(">I", 1)),
    "empty-data": frame(0, 0, 1),
    "reset-of-a-closed-stream": frame(3, 0, 1, struct.pack(">I", CANCEL)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_the_connection(wire: Make, name: str) -> None:
    """One connection may make us handle 1,000 idle frames (of the test limits), not 1,001."""
    one = wire(Slow)
    sid = one.open()
    one.exchange()
    if name.startswith("reset"):
        one.client.reset_stream(sid)
        one.exchange()
    elif name == "empty-data":
        one.send(sid, framed(b"m"))
        one.exchange()
    one.deliver(FLOODS[name] * 900)
    assert not one.pipe.closing
    for _ in range(20):
        one.deliver(FLOODS[name] * 100)
    assert one.pipe.closing
    assert one.shared.stats()["floods_total"] == 1
    one.see(bytes(one.pipe.written[one._read :]))
    assert one.goaways[-1][0] == ENHANCE_YOUR_CALM
    assert len(one.pipe.written) < 100_000


def test_window_updates_for_our_own_frames_are_free(wire: Make) -> None:
    """A client that reads a long answer sends many WINDOW_UPDATE frames."""
    one = wire(control_burst=200)
    sid = one.open()
    for _ in range(60):
        one.send_all(sid, framed(b"x" * 100_000))
    assert len(one.answers[sid].data) == 60 * 100_005
    assert one.shared.stats()["floods_total"] == 0


def test_continuation_flood(wire: Make) -> None:
    one = wire()
    one.exchange()
    head = frame(1, 0, 1, b"\x00\x01a\x01b")
    one.deliver(head + frame(9, 0, 1, b"\x00\x01a\x01b") * 100_000)
    assert one.pipe.closing and one.handlers == []
    assert len(one.pipe.written) < 10_000


def test_a_header_bomb_is_cheap(wire: Make) -> None:
    """One entry of 4,000 bytes, then 8,000 references to it: 32 MB of headers on paper."""
    one = wire()
    one.exchange()
    entry = b"\x40\x01a" + b"\x7f" + b"\xa1\x1e" + b"b" * 4000
    head = b"\x83\x86\x44\x02/x\x41\x01a" + entry + b"\xbe" * 8000
    started = time.thread_time()
    one.deliver(frame(1, 5, 1, head))
    assert time.thread_time() - started < 5  # a bound on madness, not on speed
    (answer,) = heads(bytes(one.pipe.written[one._read :]))
    assert answer["grpc-status"] == "8" and answer["grpc-message"] == "headers are too long"


def test_envoys_way_to_end_streams_is_no_flood(wire: Make) -> None:
    """Answered streams may be reset for ever: libnghttp2 alone would stop after 1,000."""
    one = wire(resets_burst=10)
    for _ in range(30):
        sids = [one.open() for _ in range(100)]
        for sid in sids:
            one.send(sid, framed(b"q"))
        one.exchange()
        for sid in sids:
            assert one.answers.pop(sid).messages == [b"q"]
            one.client.reset_stream(sid, 0)
        one.exchange()
    assert not one.goaways and not one.pipe.closing
    stats = one.shared.stats()
    assert stats["streams_total"] == 3000 and stats["open_streams"] == 0
    assert stats["resets_total"] == 0


@pytest.mark.parametrize("asked", [True, False])
def test_resets_before_an_answer_are_bounded(wire: Make, asked: bool) -> None:
    one = wire(Slow, resets_burst=50)
    count = 0
    while not one.pipe.closing and count < 60:
        count += 1
        sid = one.open()
        if asked:
            one.send(sid, framed(b"q"))
        one.client.reset_stream(sid)
        one.step()
    assert one.pipe.closing and count == 51
    assert one.goaways[-1][0] == ENHANCE_YOUR_CALM
    assert one.handlers == []  # not one decision was made for them


def test_resets_refill_with_time(wire: Make) -> None:
    one = wire(Slow, resets_burst=5, resets_per_s=1e6)
    for _ in range(100):
        one.client.reset_stream(one.open())
        one.step()
        time.sleep(0.00002)
    assert not one.pipe.closing


def test_streams_of_a_connection_are_bounded(wire: Make) -> None:
    """Refused as long as the client cannot know the limit, then an error of the connection."""
    one = wire(Slow, streams_per_connection=5)
    sids = [one.open() for _ in range(8)]
    one.exchange()
    assert [one.answers[sid].reset for sid in sids] == [None] * 5 + [REFUSED_STREAM] * 3
    assert one.shared.stats()["open_streams"] == 5
    assert one.client.remote_settings.max_concurrent_streams == 5
    one.client.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
    one.client.remote_settings.acknowledge()
    one.open()
    one.exchange()
    assert one.goaways[0][0] == PROTOCOL_ERROR and one.pipe.closing


def test_streams_of_all_connections_are_bounded(wire: Make) -> None:
    one = wire(Slow, streams=5)
    sids = [one.open() for _ in range(8)]
    one.exchange()
    statuses = [one.answers[sid].status for sid in sids]
    assert statuses == [None] * 5 + [8] * 3
    assert one.answers[sids[-1]].text == "the server is full"
    assert one.shared.stats()["refused_streams_total"] == 3


def test_connections_are_bounded(wire: Make) -> None:
    one = wire(connections=1)
    other = Wire(native.Connection, one.shared)
    assert other.pipe.aborted and not one.pipe.closing
    other.hang_up()
    third = Wire(native.Connection, one.shared)
    assert third.pipe.aborted and one.shared.stats()["refused_connections_total"] == 2
    third.hang_up()


def test_a_stream_that_keeps_too_much_is_refused(wire: Make) -> None:
    """A handler that collects for ever: its stream ends, the memory comes back."""
    one = wire(Slow, stream_bytes=1_000_000)
    sid, calm = one.open(), one.open()
    one.send_all(calm, framed(b"calm"))
    for _ in range(40):
        if one.answers[sid].ended:
            break
        one.send_all(sid, framed(b"x" * 50_000))
    assert one.answers[sid].status == 8 and "1000000" in one.answers[sid].text
    assert one.handlers[1].heard[-1] == "closed"
    assert one.shared.held_bytes < 1000
    one.handlers[0].decide((0, ""))
    one.exchange()
    assert one.answers[calm].status == 0


def test_all_streams_together_are_bounded(wire: Make) -> None:
    """Above three quarters new streams are refused, above the limit the one that asks for more."""
    one = wire(Slow, held_limit_bytes=1_000_000, stream_bytes=1_000_000)
    sids = [one.open() for _ in range(6)]
    one.exchange()
    for sid in sids[:4]:
        one.send_all(sid, framed(b"x" * 200_000))
    assert one.shared.held_bytes == 4 * 200_064
    late = one.open()
    one.exchange()
    assert one.answers[late].status == 8
    one.send_all(sids[4], framed(b"y" * 250_000))
    assert one.answers[sids[4]].status == 8
    one.handlers[0].decide((0, ""))
    one.exchange()
    assert one.answers[sids[0]].messages == [b"x" * 200_000]
    one.send_all(sids[5], framed(b"z" * 200_000))
    assert one.answers[sids[5]].status is None
    assert one.shared.stats()["peak_held_bytes"] <= 1_100_000


class Exact(Slow):
    """Says what it holds: a shadow that answers nothing and keeps nothing."""

    held_bytes = 0


def test_a_handler_that_counts_for_itself_is_believed(wire: Make) -> None:
    one = wire(Exact, stream_bytes=300_000)
    sid = one.open()
    for _ in range(40):
        one.send_all(sid, framed(b"x" * 50_000))
    assert not one.answers[sid].ended and one.shared.held_bytes == 0
    one.handlers[0].held_bytes = 90_000
    one.send_all(sid, framed(b"x"))
    assert one.shared.held_bytes == 90_000 - 0


class Pausing(Slow):
    """Takes one message at a time: a slow pick that pushes back."""

    paused = False

    def receive(self, message: bytes) -> None:
        super().receive(message)
        self.paused = True


def test_a_slow_pick_pushes_back(wire: Make) -> None:
    one = wire(Pausing, stream_window_bytes=100_000)
    sid = one.open()
    one.send_all(sid, framed(b"first"))
    sent = sum(step(one, sid, b"x" * 50_000) for _ in range(20))
    assert sent < 200_000  # the stream's window, not a byte more
    other = one.call(b"other stream")
    assert other.status is None and one.handlers[1].heard == [b"other stream", "half_closed"]
    one.handlers[0].paused = False
    one.handlers[0].wake()
    one.exchange()
    assert one.client.local_flow_control_window(sid) > 0


def step(one: Wire, sid: int, message: bytes) -> int:
    sent = one.send(sid, framed(message))
    one.exchange()
    return sent


def test_a_stalled_reader_is_not_written_to_and_may_not_write(wire: Make) -> None:
    """The client never opens its window: its own is shut when 256 KB of answers wait."""
    one = wire(auto_ack=False, stream_window_bytes=200_000)
    sid = one.open()
    sent = 0
    for _ in range(100):
        sent += one.send(sid, framed(b"x" * 10_000))
        one.exchange()
    assert HIGH <= sent <= 65_535 + HIGH + 200_000 + 20_000
    assert one.shared.held_bytes <= 2 * HIGH + 200_000
    assert len(one.answers[sid].data) == 65_535
    one.auto_ack = True
    one.client.acknowledge_received_data(65_535, sid)
    one.exchange()
    assert len(one.answers[sid].data) > 65_535 and one.client.local_flow_control_window(sid) > 0
    one.client.reset_stream(sid)
    one.exchange()
    assert one.shared.held_bytes == 0


def test_a_transport_that_is_full_is_not_written_to(wire: Make) -> None:
    one = wire()
    one.exchange()
    one.server.pause_writing()
    writes = one.pipe.writes
    sid = one.open()
    sent = sum(step(one, sid, b"x" * 100_000) for _ in range(100))
    assert one.pipe.writes == writes and sent <= 1 << 20
    one.server.resume_writing()
    one.exchange()
    assert len(one.answers[sid].data) > sent - 100_005  # whole messages
    assert one.client.local_flow_control_window(sid) > 0


def test_big_answers_leave_in_bounded_writes(wire: Make) -> None:
    one = wire(stream_window_bytes=8 << 20, connection_window_bytes=16 << 20)
    one.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 8 << 20})
    one.client.increment_flow_control_window(8 << 20)
    body = bytes(range(251)) * 15_000
    one.exchange()
    assert one.call(body).messages == [body]
    assert max(one.pipe.sizes) < 300_000 and len(one.pipe.sizes) > 10


def test_a_stream_whose_answer_does_not_move_is_reset(wire: Make) -> None:
    one = wire(auto_ack=False)
    one.client.increment_flow_control_window(1 << 20)
    sid, calm = one.open(), one.open()
    one.send_all(sid, framed(b"x" * 100_000))
    one.send_all(calm, framed(b"x"))
    now = time.monotonic()
    one.server.tick(now + 50)
    one.exchange()
    assert one.answers[sid].reset is None
    one.server.tick(now + 75)
    one.exchange()
    assert one.answers[sid].reset == CANCEL and one.answers[calm].reset is None
    assert one.handlers[0].heard[-1] == "closed" and one.shared.stats()["stalls_total"] == 1


def test_keepalive(wire: Make) -> None:
    one = wire()
    one.exchange()
    now = time.monotonic()
    one.server.tick(now + 30)
    one.exchange()
    assert one.pings == 0
    one.server.tick(now + 65)
    one.server.tick(now + 66)
    one.loop.run()
    assert bytes(one.pipe.written[one._read :]).count(frame(6, 0, 0, bytes(8))) == 1
    one.server.tick(now + 85)
    assert one.pipe.aborted


def test_the_clock_ticks_between_accept_and_the_transport() -> None:
    """The loop makes the protocol first and hands it its transport in a later turn."""
    shared = streams.Shared(**LIMITS)
    seen: list[Any] = []
    loop = Loop()
    server = native.Connection(shared, {}, seen.append, seen.append, seen.append, loop)
    server.tick(time.monotonic() + 1000)
    server.drain()
    pipe = Pipe()
    server.connection_made(pipe)
    assert pipe.written and not pipe.closing and seen == [server]
    server.tick(time.monotonic() + 5)
    assert not pipe.closing


def test_a_client_that_says_nothing_is_cut(wire: Make) -> None:
    one = wire()
    one.server.tick(time.monotonic() + 11)
    assert one.pipe.aborted


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", bytes(100), b"\x16\x03\x01"],
)
def test_not_http2(wire: Make, garbage: bytes) -> None:
    one = wire()
    one.client.clear_outbound_data_buffer()
    one.deliver(garbage)
    assert one.pipe.closing
    assert len(one.pipe.written) < 200


BAD_FRAMES = {
    "data-on-stream-0": frame(0, 0, 0, b"x"),
    "headers-on-even-stream": frame(1, 4, 2, b"\x83\x86\x84"),
    "bad-hpack": frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    "too-long": frame(0, 0, 1, bytes(16_385)),
    "settings-of-5-bytes": frame(4, 0, 0, bytes(5)),
    "ping-of-7-bytes": frame(6, 0, 0, bytes(7)),
    "window-overflow": frame(8, 0, 0, struct.pack(">I", 0x7FFFFFFF)),
    "continuation-alone": frame(9, 4, 1, b"\x83"),
    "push-promise": frame(5, 4, 1, bytes(8)),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_protocol_errors_end_the_connection_with_goaway(wire: Make, name: str) -> None:
    one = wire(Slow)
    one.exchange()
    one.deliver(BAD_FRAMES[name])
    one.see(bytes(one.pipe.written[one._read :]))
    assert one.goaways and one.goaways[0][0] != 0
    assert one.pipe.closing


def test_much_work_at_once_lets_others_on_the_loop_work(wire: Make) -> None:
    """2,000 messages of one read are handed over in several turns; reading waits meanwhile."""
    one = wire(streams_per_connection=3000, streams=3000)
    one.exchange()
    sids = [one.open() for _ in range(400)]
    for sid in sids:
        for _ in range(5):
            one.send(sid, framed(b"m"))
    sid = one.open()
    one.send(sid, framed(b"n") * 300)
    one.deliver(one.client.data_to_send())
    heard = sum(len(handler.heard) for handler in one.handlers)
    assert heard < 2300 and one.pipe.reading_paused and one.loop.calls
    one.exchange()
    assert not one.pipe.reading_paused
    assert all(one.answers[sid].messages == [b"m"] * 5 for sid in sids)
    assert one.answers[sid].messages == [b"n"] * 300


def test_limits_are_per_server_not_per_connection(wire: Make) -> None:
    one = wire(Slow, held_limit_bytes=500_000)
    other = Wire(native.Connection, one.shared, Slow)
    for side in (one, other):
        sid = side.open()
        side.exchange()
        side.send_all(sid, framed(b"x" * 200_000))
    third = other.open()
    other.exchange()
    assert other.answers[third].status == 8
    other.hang_up()
    assert one.shared.held_bytes == 200_064


@pytest.fixture
def fresh() -> Iterator[Any]:
    yield streams.Shared(**LIMITS)


def test_counters(fresh: Any) -> None:
    one = Wire(native.Connection, fresh, Echo)
    one.call(b"abc", b"")
    one.call(b"x", path="/nope")
    stats = fresh.stats()
    one.hang_up()
    assert stats["messages_in_total"] == stats["messages_out_total"] == 2
    assert stats["streams_total"] == 2 and stats["connections_total"] == 1
    assert stats["unknown_methods_total"] == 1 and stats["errors_total"] == 0
    assert stats["bytes_in_total"] > 24 and stats["bytes_out_total"] == len(one.pipe.written)
