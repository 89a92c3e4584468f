"""A proxy between a raw client and engines that misbehave on purpose.

Engines here are raw sockets with a script: what matters is what they do wrong, not what they
compute. Every rig checks at its end that no ticket, no request and no body is left over.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import msgspec

from warmlane.router.config import Config, PoolConfig
from warmlane.router.config_load import normal_spec
from warmlane.router.core import Router
from warmlane.router.proxy.server import Proxy, start_proxy
from warmlane.router.types import ReplicaSpec

MODEL = "m"


@dataclass
class Seen:
    """One request as an engine saw it: the raw head, the decoded body."""

    head: bytes
    body: bytes
    connection: int
    raw_body: bytes = b""

    @property
    def lines(self) -> list[bytes]:
        return self.head.split(b"\r\n")[:-2]

    def values(self, name: bytes) -> list[bytes]:
        found = []
        for line in self.lines[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name:
                found.append(value.strip())
        return found


@dataclass
class Out:
    """The engine's side of a connection, for its script."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *parts: bytes, pause: float = 0.0) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            if pause:
                await asyncio.sleep(pause)

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


Script = Callable[[Seen, Out], Awaitable[None]]


def chat_body(**fields: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **fields}
    return json.dumps(body).encode()


def answer_body(text: str = "hi", finish: str = "stop") -> bytes:
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": finish,
                }
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }
    ).encode()


def event(text: str | None = None, finish: str | None = None, role: bool = False) -> bytes:
    delta: dict[str, Any] = {}
    if role:
        delta = {"role": "assistant", "content": ""}
    if text is not None:
        delta["content"] = text
    data = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(data).encode() + b"\n\n"


ERROR_EVENT = (
    b'data: {"error": {"message": "EngineCore encountered an issue", '
    b'"type": "InternalServerError", "param": null, "code": 500}}\n\n'
)
DONE = b"data: [DONE]\n\n"
STREAM = [event(role=True), event("one"), event(" two"), event(" three"), event("", "stop"), DONE]


def chunk(*payloads: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in payloads)


LAST = b"0\r\n\r\n"


def head(status: int = 200, *lines: str, reason: str = "OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} {reason}", *lines, "", ""]).encode()


def whole(body: bytes = b"", status: int = 200, kind: str = "application/json") -> bytes:
    return head(status, f"content-length: {len(body)}", f"content-type: {kind}") + body


SSE_HEAD = head(
    200,
    "date: Sun, 22 Nov 2026 12:00:00 GMT",
    "server: uvicorn",
    "content-type: text/event-stream; charset=utf-8",
    "transfer-encoding: chunked",
)


def says(*parts: bytes, pause: float = 0.0) -> Script:
    """Write these bytes, whatever was asked, and keep the connection."""

    async def script(seen: Seen, out: Out) -> None:
        await out.send(*parts, pause=pause)

    return script


def says_then_closes(*parts: bytes, reset: bool = False, pause: float = 0.0) -> Script:
    async def script(seen: Seen, out: Out) -> None:
        await out.send(*parts, pause=pause)
        await asyncio.sleep(0.02)
        if reset:
            out.reset()
        else:
            out.close()

    return script


def streams(*events: bytes, pause: float = 0.0) -> Script:
    return says(SSE_HEAD, *[chunk(each) for each in events], LAST, pause=pause)


async def hangs(seen: Seen, out: Out) -> None:
    await asyncio.sleep(30)


GOOD = says(whole(answer_body()))


class Engine:
    """A scripted engine: one script per request, the last one repeats."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.scripts = list(scripts) or [GOOD]
        self.seen: list[Seen] = []
        self.connections = 0
        self.lost = asyncio.Event()  # a connection ended
        self.arrived = asyncio.Event()
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", port, ssl=self._tls, limit=2**20
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        number = self.connections
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                body, raw = await read_body(head, reader)
                seen = Seen(head, body, number, raw)
                script = self.scripts[min(len(self.seen), len(self.scripts) - 1)]
                self.seen.append(seen)
                self.arrived.set()
                await self._run(script, seen, Out(reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # gone, or the rig stops
        finally:
            self.lost.set()
            writer.close()

    async def _run(self, script: Script, seen: Seen, out: Out) -> None:
        """The script, cut short when the peer goes away meanwhile."""
        work = asyncio.ensure_future(script(seen, out))
        gone = asyncio.ensure_future(self._gone(out.reader))
        try:
            done, _ = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                work.result()
            elif not work.done():
                raise ConnectionResetError
        finally:
            for each in (work, gone):
                each.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    @staticmethod
    async def _gone(reader: asyncio.StreamReader) -> None:
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def read_body(head: bytes, reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Decoded and raw body of a request."""
    low = head.lower()
    if b"\r\ntransfer-encoding: chunked" in low:
        raw, body = b"", b""
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            raw += line
            if size == 0:
                break
            data = await reader.readexactly(size + 2)
            raw += data
            body += data[:-2]
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            raw += line
        return body, raw + b"\r\n"
    mark = low.find(b"\r\ncontent-length:")
    if mark < 0:
        return b"", b""
    length = int(low[mark + 17 :].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    return body, body


@dataclass
class Reply:
    """A parsed answer. `error`: the connection ended before it was whole."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    error: str = ""
    raw: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)

    def header(self, name: bytes) -> bytes | None:
        return dict(self.headers).get(name)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Peer:
    """A raw client connection; h11 reads the answers and refuses what is not HTTP."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.left = b""
        self.closed = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, method: str = "POST", until: bytes | None = None) -> Reply:
        """Read one answer; with `until`, only up to these body bytes."""
        parser = h11.Connection(h11.CLIENT)
        request = h11.Request(method=method, target="/", headers=[("host", "x")])
        parser.send(request)
        parser.send(h11.EndOfMessage())
        reply = Reply()
        if self.left:
            parser.receive_data(self.left)
            reply.raw, self.left = self.left, b""
        while True:
            try:
                item = parser.next_event()
            except h11.RemoteProtocolError as error:
                reply.error = str(error)
                return reply
            if item is h11.NEED_DATA:
                try:
                    data = await asyncio.wait_for(self.reader.read(65536), 10)
                except ConnectionError:
                    reply.error = "reset"
                    return reply
                reply.raw += data
                self.closed = self.closed or not data
                parser.receive_data(data)
            elif isinstance(item, h11.Response):
                reply.status = item.status_code
                reply.headers = list(item.headers)
            elif isinstance(item, h11.Data):
                reply.body += bytes(item.data)
                if until is not None and until in reply.body:
                    return reply
            elif isinstance(item, h11.EndOfMessage):
                reply.trailers = list(item.headers)
                self.left = parser.trailing_data[0]
                return reply
            elif isinstance(item, h11.ConnectionClosed):
                reply.error = reply.error or "closed"
                return reply

    async def at_end(self) -> bytes:
        """What follows until the connection closes. "RESET" when it is cut."""
        try:
            return self.left + await asyncio.wait_for(self.reader.read(-1), 10)
        except ConnectionError:
            return b"RESET"

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def post(
    body: bytes, path: str = "/v1/chat/completions", extra: Iterable[str] = (), close: bool = False
) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: router.test", "Content-Type: application/json"]
    lines += [*extra, f"Content-Length: {len(body)}"]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *extra: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: router.test", *extra, "", ""]).encode()


class Rig:
    """Engines, router and proxy, running."""

    def __init__(self, proxy: Proxy, router: Router, engines: list[Engine]) -> None:
        self.proxy = proxy
        self.router = router
        self.engines = engines
        self.peers: list[Peer] = []

    async def connect(self, tls: ssl.SSLContext | None = None, limit: int = 2**16) -> Peer:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.proxy.port,
            ssl=tls,
            limit=limit,
            server_hostname="localhost" if tls else None,
        )
        peer = Peer(reader, writer)
        self.peers.append(peer)
        return peer

    async def ask(self, request: bytes, method: str = "POST") -> Reply:
        """One request on a connection of its own."""
        peer = await self.connect()
        await peer.send(request)
        reply = await peer.reply(method)
        peer.close()
        return reply

    async def chat(self, **fields: Any) -> Reply:
        return await self.ask(post(chat_body(**fields)))

    @property
    def seen(self) -> list[Seen]:
        return [seen for engine in self.engines for seen in engine.seen]

    def count(self, family: str) -> int:
        """Sum of a counter over its labels."""
        return int(sum(self.router.metrics.counts.get(f"warmlane_{family}", {}).values()))

    async def busy(self) -> None:
        """Wait until a request is under way."""
        while not self.proxy.inflight:  # noqa: ASYNC110 - the proxy has no event for it
            await asyncio.sleep(0.005)

    async def settled(self) -> None:
        """Wait until nothing is under way, then check that nothing leaked."""
        for _ in range(400):
            state = self.proxy.state
            if not (state.inflight or state.buffered_bytes or self.router.open_tickets):
                break
            await asyncio.sleep(0.01)
        assert self.proxy.inflight == 0
        assert self.router.open_tickets == 0
        assert self.proxy.state.buffered_bytes == 0


@asynccontextmanager
async def rig(*engines: Engine | Script, **settings: Any) -> AsyncIterator[Rig]:
    """A rig with these engines. settings: sections of the config, as mappings."""
    made = [each if isinstance(each, Engine) else Engine(each) for each in engines]
    for engine in made:
        if not engine.port:
            await engine.start()
    specs = [normal_spec(ReplicaSpec(url=engine.url), "test") for engine in made]
    pool = {"policy": "round-robin", **settings.pop("pool", {})}
    tree = {
        "listen": {"port": 0, **settings.pop("listen", {})},
        "pools": [{**msgspec.to_builtins(PoolConfig(replicas=specs)), **pool}],
        **settings,
    }
    router = Router(msgspec.convert(tree, Config))
    proxy = await start_proxy(router, router.config)
    running = Rig(proxy, router, made)
    try:
        yield running
        for peer in running.peers:
            peer.close()
        await running.settled()
    finally:
        for peer in running.peers:
            peer.writer.transport.abort()
        await proxy.close()
        for engine in made:
            await engine.stop()
