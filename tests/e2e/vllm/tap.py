"""A recorder on the wire between the router and one engine: which of the two was silent?

It passes bytes, ends and resets on as they come and notes when each of them came. So what a client
sees can be held against what the engine had done by then: the difference is the router's, however
slowly the engine runs. Requests are told apart by their X-Request-Id, which the router passes on.

Runs on a thread with a loop of its own, because the router asks through it from its start on.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

EVENT_END, HEAD_END, LAST_CHUNK = b"\n\n", b"\r\n\r\n", b"0\r\n\r\n"
LENGTH = re.compile(rb"^content-length: *(\d+)", re.I | re.M)
REQUEST = re.compile(rb"^(?:POST|GET) .*?^x-request-id: *([^\r]+)\r$", re.I | re.M | re.S)


@dataclass
class Wire:
    """One request on its way to one engine. Times are seconds of the monotonic clock."""

    request: str
    sent: float
    events: list[float] = field(default_factory=list)  # when the n-th event was whole
    heard: float = 0.0  # the last byte, end or reset from the engine; 0: none
    whole: bool = False  # the answer is complete
    cut: bool = False  # the engine ended the connection before that: FIN, RST or none at all
    dropped: bool = False  # the router did
    _head: bytes = b""
    _left: int | None = None  # bytes of a body of known length
    _tail: bytes = b""

    def answer(self, data: bytes, now: float) -> None:
        self.heard = now
        if HEAD_END not in self._head:
            self._head += data
            head, end, data = self._head.partition(HEAD_END)
            if not end:
                return
            length = LENGTH.search(head)
            self._left = int(length[1]) if length else None
        ends = (self._tail[-1:] + data).count(EVENT_END)
        self.events += [now] * ends
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        if self._left is None:
            self.whole = self._tail == LAST_CHUNK
        else:
            self._left -= len(data)
            self.whole = self._left <= 0

    def end(self, now: float) -> None:
        """The engine's side of the connection is over."""
        if self.open:
            self.cut = True
            self.heard = now

    def drop(self) -> None:
        """The router's side is."""
        self.dropped = not (self.whole or self.cut)

    @property
    def open(self) -> bool:
        """The engine still works on it."""
        return not (self.whole or self.cut or self.dropped)

    @property
    def last(self) -> float:
        """When the engine last did anything here."""
        return self.heard or self.sent


class Tap:
    """Listens in front of the engine on `port` for as long as the engine may be reached."""

    def __init__(self, engine_port: int) -> None:
        self.engine_port = engine_port
        self.wires: list[Wire] = []  # appended by the tap's thread, read by others
        self.port = 0
        self.sides: set[_Side] = set()
        self._listener: socket.socket | None = None
        self._accepting: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """The replica's name in the router."""
        return f"127.0.0.1:{self.port}"

    @property
    def thread_id(self) -> int:
        """As the kernel numbers it."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def listen(self) -> None:
        """Accept connections; the port stays the same over `refuse`."""
        self._run(self._listen())

    def refuse(self) -> None:
        """Refuse connections from here on, as the port of a dead process does."""
        self._run(self._refuse())

    def close(self) -> None:
        self._run(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _listen(self) -> None:
        listener = self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        # Not asyncio's own server: one that closes while it accepts leaves a connection open that
        # nobody serves, and a dead engine would look like a silent one.
        try:
            accepted, _ = listener.accept()
        except BlockingIOError:
            return
        connected = self._loop.connect_accepted_socket(lambda: _RouterSide(self), accepted)
        task = self._loop.create_task(connected)
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def _refuse(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._loop.remove_reader(listener)
            listener.close()

    async def _cut(self) -> None:
        await self._refuse()
        while self.sides or self._accepting:
            for side in list(self.sides):
                side.transport.abort()
            await asyncio.sleep(0.01)


class _Side(asyncio.Protocol):
    """One end of a passed-on connection: what comes here goes to `other`."""

    transport: asyncio.Transport
    other: _Side | None = None

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.tap.sides.add(self)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def reset(self) -> None:
        """Cut with a RST."""
        sock: socket.socket = self.transport.get_extra_info("socket")
        if not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.tap.sides.discard(self)
        other, self.other = self.other, None
        if other is not None:
            other.other = None
            if error is None:
                other.transport.close()
            else:
                other.reset()


class _RouterSide(_Side):
    """The router's connection. It waits unread until there is one to the engine."""

    def __init__(self, tap: Tap) -> None:
        super().__init__(tap)
        self.wire: Wire | None = None
        self.opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.pause_reading()
        self.opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        side = _EngineSide(self)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: side, "127.0.0.1", self.tap.engine_port
            )
        except OSError:
            self.reset()
            return
        if self.transport.is_closing():
            side.transport.close()
            return
        self.other, side.other = side, self
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if data.startswith((b"POST ", b"GET ")):  # a body of these tests begins with a brace
            found = REQUEST.search(data.partition(HEAD_END)[0] + b"\r\n")
            self.wire = Wire(found[1].decode() if found else "", time.monotonic())
            self.tap.wires.append(self.wire)
        if self.other is not None:
            self.other.transport.write(data)

    def eof_received(self) -> None:
        self._dropped()

    def connection_lost(self, error: Exception | None) -> None:
        self._dropped()
        super().connection_lost(error)

    def _dropped(self) -> None:
        if self.wire is not None:
            self.wire.drop()


class _EngineSide(_Side):
    """The connection to the engine: what comes here is written down."""

    def __init__(self, router_side: _RouterSide) -> None:
        super().__init__(router_side.tap)
        self.router_side = router_side

    def data_received(self, data: bytes) -> None:
        wire = self.router_side.wire
        if wire is not None:
            wire.answer(data, time.monotonic())
        if self.other is not None:
            self.other.transport.write(data)

    def eof_received(self) -> None:
        self._ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended()
        super().connection_lost(error)

    def _ended(self) -> None:
        if self.router_side.wire is not None:
            self.router_side.wire.end(time.monotonic())
