"""A light HTTP/1.1 client for load: keep-alive connections, whole answers, time of the first byte.

Made to cost little beside what it measures (about 60 us of CPU a request). It speaks plain HTTP to
trusted local servers and is no general client.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec


class Reply(msgspec.Struct):
    """One answer. Times are of time.monotonic; first_byte_at is of the body (0.0: it was empty)."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: float
    first_byte_at: float
    done_at: float

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class _Wire(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.usable = True
        self._parser: Any = None
        self._waiter: asyncio.Future[Reply] | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._sent_at = 0.0
        self._first_at = 0.0
        self._head_only = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, data: bytes, *, head_only: bool) -> asyncio.Future[Reply]:
        assert self.transport is not None
        assert self._waiter is None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter = asyncio.get_running_loop().create_future()
        self._headers, self._body, self._first_at = {}, [], 0.0
        self._head_only = head_only
        self._sent_at = time.monotonic()
        self.transport.write(data)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self._fail(ConnectionError("bytes without a request"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"malformed answer: {error}"))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._head_only:
            self.on_message_complete()

    def on_body(self, data: bytes) -> None:
        if not self._first_at:
            self._first_at = time.monotonic()
        self._body.append(data)

    def on_message_complete(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if not self._parser.should_keep_alive():
            self.usable = False
        now = time.monotonic()
        status = self._parser.get_status_code()
        body = b"".join(self._body)
        waiter.set_result(Reply(status, self._headers, body, self._sent_at, self._first_at, now))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionError(f"connection lost: {exc or 'closed by the server'}"))

    def close(self) -> None:
        self.usable = False
        if self.transport is not None:
            self.transport.close()

    def _fail(self, error: Exception) -> None:
        self.usable = False
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        if self.transport is not None:
            self.transport.close()


class Client:
    """Connections to one server. `close` when done."""

    def __init__(self, url: str, *, timeout_s: float = 120.0, api_key: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"only http://host:port is spoken here: {url}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s
        self._idle: list[tuple[float, _Wire]] = []
        self._lines = f"host: {self._host}:{self._port}\r\n"
        if api_key:
            self._lines += f"authorization: Bearer {api_key}\r\n"

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        """One request. ConnectionError or TimeoutError when no whole answer came."""
        lines = self._lines + "".join(f"{k}: {v}\r\n" for k, v in (headers or {}).items())
        if body or method == "POST":
            lines += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        data = f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body
        wire = await self._wire()
        try:
            async with asyncio.timeout(self._timeout_s):
                reply = await wire.ask(data, head_only=method == "HEAD")
        except BaseException:
            wire.close()
            raise
        if wire.usable:
            self._idle.append((time.monotonic(), wire))
        else:
            wire.close()
        return reply

    async def get(self, path: str) -> Reply:
        return await self.request("GET", path)

    async def post(self, path: str, body: Any = None) -> Reply:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body or {})
        return await self.request("POST", path, data)

    async def close(self) -> None:
        for _, wire in self._idle:
            wire.close()
        self._idle.clear()
        await asyncio.sleep(0)

    async def _wire(self) -> _Wire:
        """An idle connection younger than 3 s (servers close after 5 s), else a new one."""
        now = time.monotonic()
        while self._idle:
            since, wire = self._idle.pop()
            if wire.usable and now - since < 3.0:
                return wire
            wire.close()
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(_Wire, self._host, self._port)
        return wire
