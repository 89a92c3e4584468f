"""A small HTTP/1.1 server for the fake engine: parse, hand over an Exchange, write the answer.

Kept apart from the router's own data path on purpose, so that a mistake in one does not cancel out
in the other. It serves trusted local traffic: one exchange at a time per connection, bodies up to
64 MB, idle connections closed after 5 s as vLLM's server does.

Owns connections and their buffers; knows no paths and no models.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

import httptools

MAX_BODY_BYTES = 64 << 20
MAX_PIPELINED = 64
KEEP_ALIVE_S = 5.0  # VLLM_HTTP_TIMEOUT_KEEP_ALIVE

Handler = Callable[["Exchange"], None]
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class _Date:
    """The Date header, made once a second."""

    second = 0
    line = b""

    @classmethod
    def now(cls) -> bytes:
        second = int(time.time())
        if second != cls.second:
            cls.second = second
            cls.line = b"date: " + formatdate(second, usegmt=True).encode() + b"\r\n"
        return cls.line


class Exchange:
    """One request and the way to answer it. All methods are no-ops once the client has gone."""

    __slots__ = (
        "_connection",
        "body",
        "gone",
        "headers",
        "method",
        "on_gone",
        "path",
        "query",
        "started",
        "streaming",
    )

    def __init__(self, connection: Connection, method: str, url: bytes) -> None:
        parsed = httptools.parse_url(url)
        self._connection = connection
        self.method = method
        self.path = (parsed.path or b"/").decode("latin-1")
        self.query = (parsed.query or b"").decode("latin-1")
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.gone = False
        self.started = False
        self.streaming = False
        self.on_gone: Callable[[], None] | None = None

    def respond(
        self,
        status: int,
        body: bytes = b"",
        content_type: bytes = b"application/json",
        extra: bytes = b"",
    ) -> None:
        """A whole answer. `extra`: further header lines, each ended by CRLF."""
        if self.gone:
            return
        self.started = True
        kind = b"content-type: %b\r\n" % content_type if body else b""
        head = self._head(status, extra + b"content-length: %d\r\n" % len(body) + kind)
        self._connection.write(head if self.method == "HEAD" else head + body)
        self._connection.finished(self)

    def start_stream(self) -> None:
        """The head of a chunked event stream."""
        if self.gone:
            return
        self.started = self.streaming = True
        self._connection.write(
            self._head(
                200,
                b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n",
            )
        )

    def send(self, data: bytes) -> None:
        """One chunk of a stream."""
        if not self.gone:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """The end of a stream."""
        if not self.gone:
            self._connection.write(b"0\r\n\r\n")
            self._connection.finished(self)

    def reset(self) -> None:
        """Cut the connection with a TCP reset, whatever was sent before."""
        if not self.gone:
            self._connection.reset()

    def close(self) -> None:
        """Close the connection cleanly without an answer."""
        if not self.gone:
            self._connection.finish_without_answer()

    def _head(self, status: int, lines: bytes) -> bytes:
        phrase = _PHRASES.get(status, "").encode()
        close = b"" if self._connection.keep_alive else b"connection: close\r\n"
        return (
            b"HTTP/1.1 %d %b\r\n" % (status, phrase)
            + _Date.now()
            + b"server: uvicorn\r\n"
            + lines
            + close
            + b"\r\n"
        )


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._current: Exchange | None = None
        self._queue: list[Exchange] = []
        self.keep_alive = True
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self.idle_since = time.monotonic()
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        exchange, self._current = self._current, None
        if exchange is not None:
            exchange.gone = True
            if exchange.on_gone is not None:
                exchange.on_gone()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(501)
        except httptools.HttpParserError:
            self._refuse(400)

    def on_message_begin(self) -> None:
        self._headers = {}
        self._body = []
        self._size = 0
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self._headers.get(b"expect", b"").lower() == b"100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._refuse(413)
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._transport is None:
            return
        method = self._parser.get_method().decode("ascii")
        exchange = Exchange(self, method, self._url)
        exchange.headers = self._headers
        exchange.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self.keep_alive = self._parser.should_keep_alive()
        if len(self._queue) >= MAX_PIPELINED:
            self._refuse(400)
            return
        self._queue.append(exchange)
        if self._current is None:
            self._next()

    def finished(self, exchange: Exchange) -> None:
        """The answer is complete: serve the next request or close."""
        self._current = None
        exchange.gone = True
        self.idle_since = time.monotonic()
        if not self.keep_alive or self._server.closing:
            self.close()
        elif self._queue:
            self._next()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Close when the answers written so far have left; idle connections close at once."""
        if self._transport is not None and self._current is None:
            self._transport.close()

    def finish_without_answer(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        if self._transport is None:
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None:  # SO_LINGER 0: the peer sees ECONNRESET, not a clean end
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    @property
    def idle(self) -> bool:
        return self._current is None

    def _next(self) -> None:
        self._current = self._queue.pop(0)
        self._server.handler(self._current)

    def _refuse(self, status: int) -> None:
        if self._current is not None:  # an answer is under way: nothing sensible can be added
            self.reset()
            return
        self.keep_alive = False
        exchange = self._current = Exchange(self, "GET", b"/")
        exchange.respond(status, b'{"detail":"%d"}' % status)


class HttpServer:
    """The listener. `start` returns when the port is bound; `port` is the real one."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        self.closing = False
        self.host = ""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), host, port, backlog=1024, reuse_address=True
        )
        self.host = host
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweep()

    async def stop_listening(self) -> None:
        """Refuse new connections; the open ones go on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def close_idle(self, older_than_s: float = 0.0) -> None:
        """Close connections that wait for a request since `older_than_s`."""
        now = time.monotonic()
        for connection in list(self.connections):
            if connection.idle and now - connection.idle_since >= older_than_s:
                connection.close()

    async def resume_listening(self) -> None:
        """Accept connections again on the same port."""
        if self._server is None:
            await self.start(self.host, self.port)

    async def close(self) -> None:
        """Stop, and cut what is still open."""
        self.closing = True
        await self.stop_listening()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            if connection.idle:
                connection.close()
            else:
                connection.reset()
        await asyncio.sleep(0)

    def _sweep(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.close_idle(KEEP_ALIVE_S)
        self._sweeper = asyncio.get_running_loop().call_later(1.0, self._sweep)
