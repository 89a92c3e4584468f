"""One client connection: requests in, in order, one at a time; answers out.

Owns reading, limits and time-outs of the client's side. A pipelined request waits as raw bytes
until the one before it is answered; what waits is bounded by pausing the socket. A client that
closes, even only its sending half, is gone: its request is cancelled at once.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from warmlane._core.hop import Front
from warmlane._core.straight import Straight
from warmlane.router.errors import NoReplica, RequestError, RouterError
from warmlane.router.proxy.body import BodyReader
from warmlane.router.proxy.chunked import BadChunk, ChunkReader
from warmlane.router.proxy.exchange import Exchange
from warmlane.router.proxy.local import local_answer
from warmlane.router.proxy.replies import CONTINUE, refusal, reply
from warmlane.router.proxy.request_head import RequestHead, check_start, read_request_head
from warmlane.router.proxy.upload import Upload
from warmlane.router.proxy.wire import END
from warmlane.router.types import Kind

if TYPE_CHECKING:
    from warmlane.router.proxy.state import State

# A body may take head_s plus one second per this many bytes: slow links pass, dripping does not.
_MIN_BYTES_PER_S = 16_384
# After a refusal, unread input is read and dropped for this long, so that the client gets the
# answer and not a reset (RFC 9112, section 9.6).
_LINGER_S = 1.0


class Client(Front):
    """See the module."""

    __slots__ = ("_seen", "_state", "_write")

    transport: asyncio.Transport
    _body: BodyReader | None  # of the request that is being read
    exchange: Exchange | Upload | Straight | None

    def __init__(self, state: State) -> None:
        self._write: Callable[[bytes], None]  # the transport's
        self._state = state
        self._seen = 0  # bytes of a head that need no second look
        self.debug = state.debug_headers
        self.equip(state, Straight(state))

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)
        self._write = transport.write
        state = self._state
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=state.limits.write_buffer_bytes)
        state.clients.enter(self)
        self.deadline = state.now + state.timeouts.head_s
        if len(state.clients) > state.limits.connections:
            state.metrics.limit_reached("connections")
            self._refuse(RequestError(503, "Too many connections.", kind="overloaded_error"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.clients.leave(self)
        self._drop_body()
        if self.exchange is not None:
            self.exchange.cancel()
            self.exchange = None
            self._state.inflight -= 1

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if self.exchange is None and not self._tail:  # the common case
            self._pump(data)
            return
        if type(self.exchange) is Upload:
            self._upload(data)
            return
        self._tail += data
        if self.exchange is None:
            data, self._tail = self._tail, b""
            self._pump(data)
        elif len(self._tail) > self._state.limits.head_bytes:
            self._state.metrics.limit_reached("pipelined")
            self._pause()

    def pause_writing(self) -> None:
        self.stalled = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        self.stalled = False
        if self.exchange is not None:
            self.exchange.resume()

    # For exchanges

    def write(self, data: bytes) -> None:
        self._write(data)

    def done(self, close: bool) -> None:
        """The present answer is complete."""
        exchange, self.exchange = self.exchange, None
        state = self._state
        state.inflight -= 1
        if type(exchange) is Upload:
            self._linger()
        elif close or self._paused or self._tail or self._pumping or self.closing:
            self._next(close)
        else:  # the common case of it
            self.deadline = state.now + state.timeouts.client_keepalive_s

    def _next(self, close: bool = False) -> None:
        """Ready for the next request, or close."""
        if close or self.closing:
            self._ended = self.closing = True
            self.transport.close()
            return
        state = self._state
        self.deadline = state.now + state.timeouts.client_keepalive_s
        if self._pumping:
            return
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        if self._tail:
            data, self._tail = self._tail, b""
            self._pump(data)

    def answered(self, error: RouterError) -> None:
        """The present request is answered with an error of our own; the connection lives on."""
        kind, to_head = Kind.OTHER, False
        if isinstance(self.exchange, Exchange):
            kind, to_head = self.exchange.kind, self.exchange.to_head
        self.write(refusal(error, kind, close=self.closing, to_head=to_head))
        self.done(False)

    def cut(self) -> None:
        """End a broken answer so that nobody can take it for a whole one: with a reset."""
        self.exchange = None
        self._state.inflight -= 1
        self._ended = self.closing = True
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def expired(self, now: float) -> None:
        """The tick found our deadline passed."""
        if self.exchange is not None:
            self.exchange.expired(now)
        elif self._ended:
            self.transport.abort()
        elif self._tail or self._body is not None or self.partial:
            self._refuse(RequestError(408, "The request took too long.", kind="timeout_error"))
        else:
            self.transport.close()

    def due(self) -> float:
        """When `expired` is to be called."""
        return self.deadline if self.exchange is None else self.exchange.deadline

    def finish(self) -> None:
        """Drain: close now if idle, else after the present answer."""
        self.closing = True
        if self.exchange is None and not (self._body or self._tail or self.partial):
            self.transport.close()

    # Reading requests

    def _pump(self, data: bytes) -> None:
        """Take requests from `data` until one is under way or nothing whole is left."""
        self._pumping = True
        try:
            data = self._take(data)
            while data and self.exchange is None and not self._ended:
                data = self._take(data)
        except BadChunk as error:
            self._refuse(RequestError(400, f"malformed body: {error}"))
            return
        except RequestError as error:
            self._refuse(error)
            return
        finally:
            self._pumping = False
        if data and not self._ended:
            self._tail = data

    def _take(self, data: bytes) -> bytes:
        """Take one head or a part of a body; the bytes behind it."""
        if self._body is not None:
            return self._take_body(self._body, data)
        if data.startswith(b"\r\n"):  # RFC 9112, section 2.2: empty lines before a request
            start = 2
            while data.startswith(b"\r\n", start):
                start += 2
            data = data[start:]  # cut once: a client may send many
        end = data.find(END, self._seen and max(0, self._seen - 3)) + 4
        if end < 4 or end > self._state.limits.head_bytes:
            self._wait_for_head(data)
            return b""
        return self._begin(read_request_head(data[:end]), data, end)

    def _wait_for_head(self, data: bytes) -> None:
        """`data` is a part of a head. Raises RequestError if it cannot become a whole one."""
        state = self._state
        if len(data) > state.limits.head_bytes:
            state.metrics.limit_reached("head_bytes")
            raise RequestError(431, "The request head is too large.")
        if data in (b"", b"\r"):
            self._seen = 0
        else:
            check_start(data, self._seen)
            self._seen = len(data)
            if not self._waiting:
                self._waiting = True
                self.deadline = state.now + state.timeouts.head_s
        self._tail = data

    def _begin(self, head: RequestHead, data: bytes, end: int) -> bytes:
        """A head is read, up to `end`: decide what happens to its body; the bytes behind it."""
        state = self._state
        self._waiting = False
        self._seen = 0
        if head.close or state.draining:
            self.closing = True
        if state.guarded and head.path != "/health":
            state.keys.check(head.headers)
        self.debug = state.debug_headers
        if b"x-warmlane-debug-key" in head.headers:
            self.debug = state.may_debug(head.headers[b"x-warmlane-debug-key"])
        length = head.length
        if length > state.limits.body_bytes:
            return self._too_large(head, data[end:])
        if not head.chunked and end + length <= len(data):
            self._start(head, data[end : end + length], b"")
            return data[end + length :]
        self.deadline = state.now + state.timeouts.head_s
        self._body = body_reader = BodyReader(head)
        if end < len(data):
            return self._take_body(body_reader, data, end)
        if head.expect:
            self.write(CONTINUE)
        return b""

    def _take_body(self, body: BodyReader, data: bytes, start: int = 0) -> bytes:
        """Take the part of a body that begins at `start`; the bytes behind it."""
        state = self._state
        before = body.size
        rest = body.begin(data, start) if start else body.feed(data)
        grown = body.size - before
        self.deadline += grown / _MIN_BYTES_PER_S
        state.buffered_bytes += grown
        if state.buffered_bytes > state.limits.buffered_bytes:
            state.metrics.limit_reached("buffered_bytes")
            raise RequestError(503, "Too many request bodies under way.", kind="overloaded_error")
        if body.size > state.limits.body_bytes:
            return self._too_large(body.head, rest)
        if body.done:
            self._start(body.head, self._drop_body(), body.trailer)
        return rest

    def _drop_body(self) -> bytes:
        """The body that was being read is complete or not wanted any more."""
        self.forget_partial()
        body, self._body = self._body, None
        if body is None:
            return b""
        self._state.buffered_bytes -= body.size
        return body.join()

    def _start(self, head: RequestHead, body: bytes, trailer: bytes) -> None:
        state = self._state
        answer = local_answer(state, head) if head.method != b"POST" else None
        if answer is not None:
            status, headers, content = answer
            to_head = head.method == b"HEAD"
            self.write(reply(status, headers, content, close=self.closing, to_head=to_head))
            self._next()
            return
        state.inflight += 1
        if state.inflight > state.limits.inflight:
            self._overloaded()
            return
        exchange = self.exchange = Exchange(state, self, head, body, trailer)
        try:
            exchange.start()
        except Exception:  # noqa: BLE001 - reported by crashed()
            exchange.crashed()

    def _overloaded(self) -> None:
        """`limits.inflight` is passed by the request that is now counted."""
        self._state.metrics.limit_reached("inflight")
        self.answered(NoReplica("Too many requests under way.", status=503, retry_after_s=1.0))

    # Bodies beyond the buffer

    def _too_large(self, head: RequestHead, rest: bytes) -> bytes:
        """Multipart streams through, anything else is refused."""
        kind = head.headers.get(b"content-type", b"").lower()
        if not kind.startswith(b"multipart/"):
            self._state.metrics.limit_reached("body_bytes")
            raise RequestError(413, "The request body is too large.", code="body_too_large")
        self.closing = True  # it may be answered before its body ends: no request follows
        chunks = ChunkReader() if head.chunked else None
        if self._body is not None:
            chunks = self._body.chunks
        elif head.expect and not rest:
            self.write(CONTINUE)
        buffered = self._drop_body()
        state = self._state
        state.inflight += 1
        if state.inflight > state.limits.inflight:
            self._overloaded()
            return b""
        upload = self.exchange = Upload(state, self, head, buffered, b"")
        upload.begin(chunks, head.length, rest)
        if rest and self.exchange is upload:
            self._upload(rest)
        return b""

    def _upload(self, data: bytes) -> None:
        upload = self.exchange
        assert isinstance(upload, Upload)
        try:
            upload.feed(data)
        except BadChunk as error:
            upload.cancel()
            self.exchange = None
            self._state.inflight -= 1
            self._refuse(RequestError(400, f"malformed body: {error}"))

    def pause_upload(self, paused: bool) -> None:
        """The replica reads slower than the client writes."""
        if paused:
            self._pause()
        elif self._paused:
            self._paused = False
            self.transport.resume_reading()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    # Ending

    def _refuse(self, error: RequestError) -> None:
        """The input cannot be used from here on: say why, then close."""
        self._state.metrics.rejected(error.code or str(error.status))
        self.closing = True
        self._drop_body()
        self.write(refusal(error, close=True))
        self._linger()

    def _linger(self) -> None:
        self._ended = True
        self._tail = b""
        self.deadline = self._state.now + _LINGER_S
        self.pause_upload(False)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()
