"""One connection to a replica: writes a request, frames the answer, tells the exchange.

It knows HTTP/1.1 framing and nothing else: no retries, no health, no clients. After a clean end
it goes back to its Link; after anything doubtful it closes.

The exchange hears, in this order: `on_head` once, `on_data` any number of times with the last one
marked done; or `on_fault` once in place of the rest. A whole answer of known length in one read is
told with `on_whole` alone. After that the connection has forgotten it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Protocol, cast

from warmlane._core.hop import Back
from warmlane.router.attempts import Fault
from warmlane.router.proxy.chunked import BadChunk, ChunkReader
from warmlane.router.proxy.response_head import BadAnswer, ResponseHead, read_response_head
from warmlane.router.proxy.tracked import Tracked
from warmlane.router.proxy.wire import END, Framing

# A replica's response head; engines send 200 bytes.
MAX_HEAD = 65_536


class Listener(Protocol):
    """What an exchange offers to its connection."""

    to_head: bool

    def on_head(self, head: ResponseHead, more: bool) -> None: ...
    def on_data(
        self, raw: bytes, payload: bytes, aligned: bool, done: bool, trailer: bytes
    ) -> None: ...
    def on_whole(self, head: ResponseHead, raw: bytes, body: bytes) -> None: ...
    def on_fault(self, fault: Fault, reason: str, stale: bool) -> None: ...
    def on_writable(self, writable: bool) -> None: ...
    def crashed(self) -> None: ...


class Home(Protocol):
    """Where a connection goes back to after a clean end: its Link."""

    def give(self, connection: Upstream, now: float) -> None: ...


class Upstream(Back):
    """See the module."""

    __slots__ = (
        "_buffer",
        "_chunks",
        "_connections",
        "_framing",
        "_left",
        "_link",
        "_listener",
        "_write",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, link: Home, connections: Tracked[Upstream]) -> None:
        self._write: Callable[[bytes], None]  # the transport's
        self._link = link
        self._connections = connections
        self._listener: Listener | None = None
        self._chunks: ChunkReader | None = None
        self._framing: Framing | None = None  # None: a head is expected
        self._left = 0
        self._buffer = b""
        self._silent = True  # no byte of the present answer yet
        self._sent_all = True  # the whole request is written

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        self._write = transport.write
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.usable = True
        self._connections.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._connections.leave(self)
        if self.course is not None:
            self.course.leave()
        listener = self._listener
        if listener is None:
            return
        if self._framing is Framing.CLOSE and exc is None:
            self._finish(b"", b"", True, b"")
            return
        self._fail(Fault.RESET, "the engine closed the connection")

    def pause_writing(self) -> None:
        if self._listener is not None:
            self._listener.on_writable(False)

    def resume_writing(self) -> None:
        if self._listener is not None:
            self._listener.on_writable(True)

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        if listener is None:  # nobody asked: junk behind an answer
            self.close()
            return
        self._silent = False
        try:
            if self._framing is None:
                rest = self._read_head(data, listener)
                if rest is None or self._listener is not listener:
                    return
                data = rest
                if not data and self._framing is not Framing.NONE:
                    return
            self._read_body(data, listener)
        except (BadAnswer, BadChunk) as error:
            self._fail(Fault.PROTOCOL, str(error))
        except Exception:  # noqa: BLE001 - reported by crashed()
            # A bug of ours must cost one request, not leave its client waiting for ever.
            self.abort()
            listener.crashed()

    # For the exchange

    def send(self, listener: Listener, head: bytes, body: bytes, whole: bool = True) -> None:
        """Write a request. whole: False when `write` will bring more of the body."""
        self._listener = listener
        self._silent = True
        self._sent_all = whole
        if not body:
            self._write(head)
        elif len(body) < 16_384:  # below that, joining costs less than a second buffer
            self._write(head + body)
        else:
            self.transport.writelines((head, body))

    def take_over(self, listener: Listener, response: ResponseHead | None, chunks: object) -> None:
        """Go on for a listener whose request another has sent.

        response, chunks: of a chunked answer that it has a part of; None: nothing was read.
        """
        self._listener = listener
        if response is not None:
            assert isinstance(chunks, ChunkReader)
            self._framing, self._chunks = Framing.CHUNKED, chunks
            self._keep = not response.close

    def write(self, data: bytes, last: bool) -> None:
        self._write(data)
        self._sent_all = last

    def pause(self) -> None:
        self.transport.pause_reading()

    def resume(self) -> None:
        self.transport.resume_reading()

    def abort(self) -> None:
        """Cut it: the replica sees a reset and stops working for this request."""
        self._listener = None
        self.usable = False
        self.transport.abort()

    def close(self) -> None:
        self._listener = None
        self.usable = False
        self.transport.close()

    # Reading

    def _read_head(self, data: bytes, listener: Listener) -> bytes | None:
        """The bytes behind the head; None when it is not complete, or the answer is already."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            end = data.find(END)
            if end < 0:
                if len(data) > MAX_HEAD:
                    raise BadAnswer("answer head too large")
                self._buffer = data
                return None
            end += 4
            head = read_response_head(data[:end], listener.to_head)
            raw = data
            data = data[end:]
            if head.status >= 200:
                break
            # 100 and 103 are for us alone: the client's own 100 was sent when it asked.
        self._keep = not head.close
        if head.framing is Framing.LENGTH and len(data) == head.length:
            self._let_go()
            listener.on_whole(head, raw, data)
            return None
        self._framing = head.framing
        self._left = head.length
        if head.framing is Framing.CHUNKED:
            self._chunks = ChunkReader()
        listener.on_head(head, bool(data) or head.framing is Framing.NONE)
        return data

    def _read_body(self, data: bytes, listener: Listener) -> None:
        framing = self._framing
        if framing is Framing.CHUNKED:
            chunks = self._chunks
            assert chunks is not None
            payload = chunks.feed(data)
            if not chunks.done:
                listener.on_data(data, payload, chunks.aligned, False, b"")
                return
            used = chunks.used
            if used < len(data):
                data = data[:used]
                self._keep = False
            self._finish(data, payload, chunks.aligned, chunks.trailer)
        elif framing is Framing.LENGTH:
            left = self._left = self._left - len(data)
            if left > 0:
                listener.on_data(data, data, True, False, b"")
                return
            if left < 0:
                data = data[:left]
                self._keep = False
            self._finish(data, data, True, b"")
        elif framing is Framing.NONE:
            if data:
                self._keep = False
            self._finish(b"", b"", True, b"")
        else:
            listener.on_data(data, data, True, False, b"")

    def _finish(self, raw: bytes, payload: bytes, aligned: bool, trailer: bytes) -> None:
        """The answer is whole: hand on its last bytes, then give the connection back."""
        listener = self._listener
        assert listener is not None
        self._let_go()
        listener.on_data(raw, payload, aligned, True, trailer)

    def _let_go(self) -> None:
        """The exchange needs us no more: back to the link, or close."""
        self._listener = None
        self._framing = None
        self._chunks = None
        self._used = True
        flushed = self._sent_all and self.transport.get_write_buffer_size() == 0
        if self._keep and flushed and self.usable:
            self._link.give(self, monotonic())
        else:
            self.close()

    def _fail(self, fault: Fault, reason: str) -> None:
        listener = self._listener
        # An engine may close an idle connection just as we write on it: nobody's fault.
        stale = fault is Fault.RESET and self._used and self._silent
        self.abort()
        if listener is not None:
            listener.on_fault(fault, reason, stale)
