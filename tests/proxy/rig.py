"""A proxy between a raw client and scripted engines (`engine`).

Every rig checks at its end that no ticket, no request and no body is left over.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterable
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

from .engine import DONE, Engine, Script, Seen, chat_body

# Set by conftest: under "default" plain requests take the compiled path, under any other policy all
# go through Python. Both have to behave the same.
POLICY = "round-robin"


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


def ends_with_error(body: bytes) -> str:
    """The last event is an error and there is no [DONE]; its code."""
    events = [each for each in body.split(b"\n\n") if each]
    assert DONE.strip() not in body
    error = json.loads(events[-1].removeprefix(b"data: "))["error"]
    assert error["message"]
    assert sum(b'"error"' in each for each in events) == 1
    return str(error["code"])


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
    pool = {"policy": POLICY, **settings.pop("pool", {})}
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
