"""Refused memory in the native transport: a connection may go, nothing is kept, others go on.

Every allocation of libnghttp2 fails once, in turn, over a conversation with each kind of frame; so
does every one of Python's, where this interpreter has the means (`_testcapi`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import h2.exceptions
import pytest

from tests.core.h2_rig import LIMITS, Echo, Wire, framed

native = pytest.importorskip(
    "warmlane._core.h2.connection",
    reason="the native transport is not built: install libnghttp2-dev",
)
streams = pytest.importorskip("warmlane._core.h2.streams")
frames = pytest.importorskip("warmlane._core.h2.frames")


def conversation(wire: Wire) -> Iterator[None]:
    """Acts of a client and of the loop, one before each yield."""
    yield
    answered = wire.open()
    wire.send(answered, framed(b"x" * 5000), end=True)
    yield
    refused = wire.open("/nope", end=True)
    left = wire.open(extra={"x-long": "y" * 500})
    wire.send(left, framed(b"z" * 20_000))
    yield
    wire.client.ping(b"12345678")
    wire.client.reset_stream(left, 8)
    yield
    torn = wire.open()
    wire.send(torn, framed(b"whole") + b"\0\0\0", end=True)
    yield
    for _ in range(40):
        sid = wire.open()
        wire.send(sid, framed(b"many"), end=True)
    yield
    wire.server.tick(time.monotonic() + 70)  # long silent: it is asked whether it lives
    yield
    late = wire.open()
    wire.send(late, framed(b"late"))
    wire.server.drain()
    yield
    wire.send(late, b"", end=True)
    wire.server.drain_now()
    yield
    assert refused and torn


def play(wire: Wire) -> None:
    """The conversation until its end, or until the server cuts the connection."""
    for _ in conversation(wire):
        for _ in range(50):
            data = wire.client.data_to_send()
            if wire.pipe.closing:
                return
            wire.deliver(data)
            wire.loop.run()
            came = bytes(wire.pipe.written[wire._read :])
            wire._read += len(came)
            try:
                wire.see(came)
            except h2.exceptions.ProtocolError as error:
                raise AssertionError("what was written is no HTTP/2") from error
            if not data and not came:
                break


def a_server() -> Any:
    return streams.Shared(**LIMITS)


def nothing_is_left(shared: Any) -> None:
    stats = shared.stats()
    assert stats["held_bytes"] == stats["open_streams"] == stats["open_connections"] == 0


def others_go_on(shared: Any) -> None:
    """A connection of the same server is served."""
    wire = Wire(native.Connection, shared, Echo)
    assert wire.call(b"still here").messages == [b"still here"]
    wire.hang_up()
    nothing_is_left(shared)


def test_refused_memory_of_the_library_costs_one_connection() -> None:
    shared, felt, left = a_server(), 0, -1
    for after in range(2000):
        frames._fail_allocation_after(after)
        try:
            wire = Wire(native.Connection, shared, Echo)
        except MemoryError:  # there is no connection yet: the loop refuses the client
            continue
        try:
            play(wire)
        finally:
            left = frames._fail_allocation_after(-1)
        assert wire.errors == [], "no handler failed"
        felt += wire.pipe.aborted
        wire.hang_up()
        nothing_is_left(shared)
        if left >= 0:
            break
    assert left >= 0, "the conversation takes fewer allocations"
    assert felt > 50, "most refusals are felt"
    assert shared.stats()["errors_total"] == felt
    others_go_on(shared)


class Counted:
    """Answers the first message; takes no memory to remember that it was told of the end."""

    def __init__(self, wake: Callable[[], None]) -> None:
        del wake
        self.status: tuple[int, str] | None = None
        self.ends = 0
        self.out: list[bytes] = []

    def receive(self, message: bytes) -> None:
        self.out.append(message)

    def half_closed(self) -> None:
        self.status = (0, "")

    def take(self) -> list[bytes]:
        taken, self.out = self.out, []
        return taken

    def closed(self) -> None:
        self.ends += 1


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_refused_memory_of_python_costs_one_connection(start: int) -> None:
    testcapi = pytest.importorskip("_testcapi", reason="this interpreter comes without its tests")
    shared = a_server()
    for after in range(start, start + 50):
        wire = Wire(native.Connection, shared, Counted, counts=False)
        wire.deliver(wire.client.data_to_send())
        for number in range(8):
            sid = wire.open(extra={"x": "y" * 100})
            wire.send(sid, framed(b"x" * 700 * number), end=number % 2 == 0)
        data = wire.client.data_to_send()
        testcapi.set_nomemory(after, after + 1)
        try:
            wire.server.data_received(data)
        finally:
            testcapi.remove_mem_hooks()
        wire.loop.run()
        wire.hang_up()
        assert [handler.ends for handler in wire.handlers] == [1] * len(wire.handlers)
        nothing_is_left(shared)
    others_go_on(shared)
