"""Connections under our own epoll descriptor, on real sockets: what asyncio promises holds."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from warmlane._core.poll import Conn, Peer, Poller, _fail_allocation_after

MB = 1 << 20


class Recorder(Peer):
    """Writes down every call."""

    def __init__(self, *, half: bool = False, breaks: bool = False) -> None:
        self.calls: list[str] = []
        self.data = b""
        self.error: Exception | None = None
        self.lost = asyncio.Event()
        self.changed = asyncio.Event()
        self._half = half
        self._breaks = breaks

    def _note(self, call: str) -> None:
        assert not self.lost.is_set(), f"{call} after connection_lost"
        self.calls.append(call)
        self.changed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._note("made")

    def data_received(self, data: bytes) -> None:
        assert data
        self.data += data
        self._note("data")
        if self._breaks:
            raise ZeroDivisionError

    def eof_received(self) -> bool:
        self._note("eof")
        return self._half

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self._note("lost")
        self.error = exc
        self.lost.set()

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not what():
                self.changed.clear()
                if not what():
                    await self.changed.wait()


def pair(buffer: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, ours non-blocking."""
    with socket.socket() as listener:
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.socket()
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@asynccontextmanager
async def polled() -> AsyncIterator[Poller]:
    poller = Poller(asyncio.get_running_loop())
    try:
        yield poller
    finally:
        poller.close()
        assert len(poller) == 0


async def read(sock: socket.socket, size: int) -> bytes:
    loop, got = asyncio.get_running_loop(), b""
    while len(got) < size:
        part = await asyncio.wait_for(loop.sock_recv(sock, min(MB, size - len(got))), 10)
        if not part:
            break
        got += part
    return got


async def test_bytes_both_ways_and_a_clean_end() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        peer = Recorder()
        conn = Conn(poller, ours, peer)
        theirs.send(b"hello")
        await peer.until(lambda: peer.data == b"hello")
        conn.write(b"one ")
        conn.writelines((b"two ", b"three "))
        conn.write(bytearray(b"four "))
        conn.writelines((b"a", b"b", b"c"))
        conn.write(b"")
        assert await read(theirs, 22) == b"one two three four abc"
        theirs.close()
        await peer.until(peer.lost.is_set)
        assert peer.calls == ["made", "data", "eof", "lost"]
        assert peer.error is None
        assert ours.fileno() == -1
        conn.write(b"late")  # ignored, as asyncio does
        conn.close()
        conn.abort()
        conn.pause_reading()
        conn.resume_reading()
        await asyncio.sleep(0)
        assert conn.is_closing()


async def test_data_and_end_that_come_together_are_both_seen() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        theirs.send(b"last words")
        theirs.close()
        peer = Recorder()
        Conn(poller, ours, peer)
        await peer.until(peer.lost.is_set)
        assert peer.data == b"last words"
        assert peer.calls == ["made", "data", "eof", "lost"]


async def test_reset_is_an_error() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        peer = Recorder()
        Conn(poller, ours, peer)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await peer.until(peer.lost.is_set)
        assert isinstance(peer.error, ConnectionResetError)
        assert peer.calls == ["made", "lost"]


async def test_half_close_keeps_our_side_open() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        peer = Recorder(half=True)
        conn = Conn(poller, ours, peer)
        theirs.shutdown(socket.SHUT_WR)
        await peer.until(lambda: "eof" in peer.calls)
        assert conn.can_write_eof()
        conn.write(b"answer")
        conn.write_eof()
        assert await read(theirs, 100) == b"answer"
        assert not peer.lost.is_set()
        conn.close()
        await peer.until(peer.lost.is_set)
        assert peer.calls == ["made", "eof", "lost"]
        theirs.close()


async def test_much_data_in_both_directions() -> None:
    blob = os.urandom(3 * MB)
    async with polled() as poller:
        ours, theirs = pair()
        peer = Recorder()
        conn = Conn(poller, ours, peer)
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(theirs, blob))
        conn.write(blob)
        assert await read(theirs, len(blob)) == blob
        await sending
        await peer.until(lambda: len(peer.data) == len(blob))
        assert peer.data == blob
        theirs.close()
        await peer.until(peer.lost.is_set)


async def test_stalled_reader_pauses_the_peer_and_order_is_kept() -> None:
    parts = [bytes([number]) * 5000 for number in range(200)]
    async with polled() as poller:
        ours, theirs = pair(buffer=8192)
        peer = Recorder()
        conn = Conn(poller, ours, peer, 65536)
        for part in parts:
            conn.write(part)
        assert "pause" in peer.calls and peer.calls.count("pause") == 1
        assert conn.get_write_buffer_size() > 65536
        assert await read(theirs, 1_000_000) == b"".join(parts)
        await peer.until(lambda: "resume" in peer.calls)
        assert conn.get_write_buffer_size() <= 65536 // 4
        conn.close()
        await peer.until(peer.lost.is_set)
        theirs.close()


async def test_close_sends_what_waits_and_abort_drops_it() -> None:
    async with polled() as poller:
        for cut in (False, True):
            ours, theirs = pair(buffer=8192)
            peer = Recorder()
            conn = Conn(poller, ours, peer)
            conn.write(b"x" * MB)
            waiting = conn.get_write_buffer_size()
            assert waiting > 0
            conn.abort() if cut else conn.close()
            assert not peer.lost.is_set(), "never from inside a call"
            if cut:
                await peer.until(peer.lost.is_set)
                assert conn.get_write_buffer_size() == 0
                assert len(await read(theirs, MB)) < MB
            else:
                conn.write(b"ignored")
                assert len(await read(theirs, 2 * MB)) == MB
                await peer.until(peer.lost.is_set)
            assert peer.calls[-1] == "lost" and peer.error is None
            theirs.close()


async def test_end_of_our_side_waits_for_what_is_written() -> None:
    async with polled() as poller:
        ours, theirs = pair(buffer=8192)
        peer = Recorder()
        conn = Conn(poller, ours, peer)
        conn.write(b"x" * MB)
        conn.write_eof()
        assert len(await read(theirs, 2 * MB)) == MB
        theirs.close()
        await peer.until(peer.lost.is_set)


async def test_paused_reading_loses_nothing() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        peer = Recorder()
        conn = Conn(poller, ours, peer)
        conn.pause_reading()
        theirs.send(b"one")
        await asyncio.sleep(0.02)
        theirs.send(b"two")
        theirs.close()
        await asyncio.sleep(0.02)
        assert peer.calls == ["made"]
        conn.resume_reading()
        assert peer.calls == ["made"], "not from inside the call"
        await peer.until(peer.lost.is_set)
        assert peer.data == b"onetwo"


async def test_writing_to_one_who_left() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        peer = Recorder()
        conn = Conn(poller, ours, peer)
        conn.pause_reading()  # so that only writing can find out
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await asyncio.sleep(0.01)
        conn.write(b"x")
        conn.write(b"y")
        await peer.until(peer.lost.is_set)
        assert isinstance(peer.error, OSError)


async def test_peer_that_fails_loses_its_connection_alone() -> None:
    loop = asyncio.get_running_loop()
    reports: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    async with polled() as poller:
        bad, good = Recorder(breaks=True), Recorder()
        ours, theirs = pair()
        Conn(poller, ours, bad)
        others, far = pair()
        Conn(poller, others, good)
        theirs.send(b"x")
        far.send(b"y")
        await bad.until(bad.lost.is_set)
        await good.until(lambda: good.data == b"y")
        assert [type(each["exception"]) for each in reports] == [ZeroDivisionError]
        assert len(poller) == 1
        theirs.close()
        far.close()
        await good.until(good.lost.is_set)


async def test_hundreds_of_connections_share_the_loop() -> None:
    async with polled() as poller:
        peers: list[Recorder] = []
        ends: list[socket.socket] = []
        for _ in range(400):
            ours, theirs = pair()
            peer = Recorder()
            Conn(poller, ours, peer)
            peers.append(peer)
            ends.append(theirs)
        for number, end in enumerate(ends):
            end.send(b"%d" % number)
        for number, peer in enumerate(peers):
            await peer.until(lambda peer=peer, number=number: peer.data == b"%d" % number)
        for end in ends[::2]:
            end.close()
        for peer in peers[::2]:
            await peer.until(peer.lost.is_set)
        assert len(poller) == 200
        for end in ends[1::2]:
            end.close()
    for peer in peers:
        assert peer.calls.count("lost") == 1


async def test_one_flood_does_not_starve_another() -> None:
    """A connection that always has more gets one read a turn."""
    async with polled() as poller:
        flood, flooded = pair()
        quiet, asked = pair()
        busy, other = Recorder(), Recorder()
        Conn(poller, flood, busy)
        Conn(poller, quiet, other)
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(flooded, bytes(8 * MB)))
        await busy.until(lambda: len(busy.data) > 0)
        asked.send(b"?")
        await other.until(lambda: other.data == b"?")
        assert len(busy.data) < 8 * MB
        await sending
        flooded.close()
        asked.close()
        await busy.until(busy.lost.is_set)


async def test_closed_connections_are_freed() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        peer = Recorder()
        Conn(poller, ours, peer)
        theirs.close()
        await peer.until(peer.lost.is_set)
        await asyncio.sleep(0)
        del peer
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Conn)]


async def test_no_memory_for_a_poller() -> None:
    for count in (0, 1):
        _fail_allocation_after(count)
        with pytest.raises(MemoryError):
            Poller(asyncio.get_running_loop())
    Poller(asyncio.get_running_loop()).close()


async def test_closed_socket_cannot_be_watched() -> None:
    async with polled() as poller:
        ours, theirs = pair()
        theirs.close()
        ours.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            Conn(poller, ours, Recorder())
