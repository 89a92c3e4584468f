"""One kept connection to one engine for small GETs over plain HTTP: what a scrape needs, no more.

A scrape comes several times a second and replica. aiohttp takes 0.8 ms of CPU for one; this, with
the head reader and the chunk reader of the proxy, takes a tenth of it. No redirects, no proxies,
no cookies, no TLS: `feeds.client.fetch` is there for engines behind https.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast
from urllib.parse import urlsplit

from warmlane._core.chunks import BadChunk, ChunkReader
from warmlane._core.http_head import Framing, HeadError, ResponseHead, read_response
from warmlane.router.feeds.client import EngineError

_MOST_HEAD: Final = 65_536
_END: Final = b"\r\n\r\n"
_INTERIM: Final = 200  # statuses below announce another head


class KeptLine:
    """GETs to one origin ("http://host:port"), one after the other.

    headers: sent with each. keepalive_s: a connection that was idle for longer is not used again;
    below the engines' own time-out. To be closed by its owner.
    """

    def __init__(self, origin: str, headers: dict[str, str], keepalive_s: float) -> None:
        parts = urlsplit(origin)
        assert parts.scheme == "http" and parts.hostname, "the caller chose it for that"
        self._host, self._port = parts.hostname, parts.port or 80
        lines = {"Host": parts.netloc, "User-Agent": "warmlane", "Accept": "*/*"}
        lines |= {"Accept-Encoding": "identity", **headers}
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._keepalive_s = keepalive_s
        self._idle_since = 0.0
        self._exchange: _Exchange | None = None

    async def get(self, path: str, timeout_s: float, max_bytes: int) -> tuple[int, bytes]:
        """(status, body). EngineError: no answer in time, none that can be read, or too long."""
        request = f"GET {path} HTTP/1.1\r\n{self._lines}\r\n".encode("latin-1")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(request, max_bytes)
        except TimeoutError as error:
            self.close()
            raise EngineError(f"no answer in {timeout_s:g} s") from error
        except OSError as error:
            self.close()
            raise EngineError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
        except BaseException:  # cancelled as well: an answer under way belongs to nobody
            self.close()
            raise

    async def _ask(self, request: bytes, max_bytes: int) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        kept, self._exchange = self._exchange, None
        if kept is not None and loop.time() - self._idle_since < self._keepalive_s:
            try:
                return await self._through(kept, request, max_bytes)
            except ConnectionResetError:
                if kept.heard:
                    raise
                # The engine closed it while it was idle. A GET may be asked again.
        elif kept is not None:
            kept.close()
        _, fresh = await loop.create_connection(_Exchange, self._host, self._port)
        return await self._through(fresh, request, max_bytes)

    async def _through(
        self, exchange: _Exchange, request: bytes, max_bytes: int
    ) -> tuple[int, bytes]:
        self._exchange = exchange
        answer = await exchange.ask(request, max_bytes)
        self._idle_since = asyncio.get_running_loop().time()
        return answer

    def close(self) -> None:
        """The connection goes; the next GET makes another."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()


class _Exchange(asyncio.Protocol):
    """One connection and the answer that is being read. heard: a byte of it came."""

    def __init__(self) -> None:
        self.heard = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._most = 0
        self._start()

    def _start(self) -> None:
        self._data = bytearray()
        self._body = bytearray()
        self._head: ResponseHead | None = None
        self._chunks: ChunkReader | None = None

    def ask(self, request: bytes, max_bytes: int) -> asyncio.Future[tuple[int, bytes]]:
        """The answer's (status, body); ConnectionResetError when it does not come whole."""
        self._answer = asyncio.get_running_loop().create_future()
        self._most, self.heard = max_bytes, False
        self._start()
        if self._transport is None or self._transport.is_closing():
            self._fail(ConnectionResetError("closed by the engine"))
        else:
            self._transport.write(request)
        return self._answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._answer is None or self._answer.done():  # nobody asked: not to be used again
            self.close()
            return
        self._data += data
        try:
            while self._head is None and self._read_head():
                pass
            if self._head is not None:
                self._read_body(self._head)
        except HeadError as error:
            self._fail(EngineError(f"no HTTP answer: {error.args[1]}"))
        except BadChunk:
            self._fail(EngineError("a broken chunked answer"))
        except EngineError as error:
            self._fail(error)

    def _read_head(self) -> bool:
        """True: a head was read, an interim one was dropped."""
        end = self._data.find(_END)
        if end < 0:
            if len(self._data) > _MOST_HEAD:
                raise EngineError(f"a head over {_MOST_HEAD} bytes")
            return False
        head = read_response(bytes(self._data[: end + 4]), False)
        del self._data[: end + 4]
        if head.status >= _INTERIM:
            self._head = head
            self._chunks = ChunkReader() if head.framing is Framing.CHUNKED else None
        return True

    def _read_body(self, head: ResponseHead) -> None:
        data, self._data = self._data, bytearray()
        whole, more = head.framing is Framing.NONE, False  # more: bytes that nobody asked for
        if self._chunks is not None:
            self._body += self._chunks.feed(bytes(data))
            whole, more = self._chunks.done, self._chunks.used < len(data)
        elif whole:
            more = len(data) > 0
        else:
            self._body += data
            if head.framing is Framing.LENGTH:
                whole, more = len(self._body) >= head.length, len(self._body) > head.length
                del self._body[head.length :]
        if len(self._body) > self._most:
            raise EngineError(f"answer over {self._most} bytes", head.status)
        if whole:
            self._done(head, head.close or more)

    def _done(self, head: ResponseHead, close: bool) -> None:
        assert self._answer is not None, "there is one to be read"
        self._answer.set_result((head.status, bytes(self._body)))
        if close:
            self.close()

    def eof_received(self) -> None:
        head = self._head
        waits = self._answer is not None and not self._answer.done()
        if waits and head is not None and head.framing is Framing.CLOSE:
            self._done(head, True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionResetError(str(exc) if exc else "closed by the engine"))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
