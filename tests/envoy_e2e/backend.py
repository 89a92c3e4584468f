"""A replica that hashes what it gets and answers as the request's own headers ask it to.

It runs in the test's event loop, behind Envoy. `x-answer` names the answer:

- absent: JSON with size and SHA-256 of the body, and a usage like vLLM's;
- `sse:N:MS`: N events, MS milliseconds apart, with usage and [DONE];
- `gate:N`: the head of a stream and N events, three more when the test opens the gate;
- `held`: the default answer when the test opens the gate;
- `bytes:N`: N pseudo-random bytes, with their length told, so that the client can hash them;
- `chunks:N:SIZE`: the same in N chunks of SIZE bytes, length not told;
- `slow:MS`: the default answer after MS milliseconds;
- `trailers`: the default answer, chunked, with a trailer;
- `cut`: the connection closes in the middle of the answer;
- `status:N`: the default answer with that status.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from dataclasses import dataclass, field

import httptools

MODEL = "m"
KEPT = 1 << 20


def noise(size: int, seed: int = 7) -> bytes:
    """Reproducible bytes that no compression and no default value resembles."""
    return random.Random(seed).randbytes(size)


@dataclass
class Seen:
    """One request as the replica saw it."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    size: int = 0
    sha256: str = ""
    body: bytes = b""
    """Kept up to `KEPT` bytes."""
    whole: bool = False
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """The connection ended before the answer did."""


class Backend:
    """`await start()`, `endpoint`, `seen` (requests for inference only), `await stop()`."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.seen: list[Seen] = []
        self.gate = asyncio.Event()
        self.port = 0
        self.connections: set[_Connection] = set()
        self.expected: dict[str, asyncio.Future[Seen]] = {}
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), self.host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Also the connections: as a process that is gone."""
        assert self._server is not None
        self._server.close()
        for each in list(self.connections):
            each.transport.abort()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection of Envoy's or of a probe's."""

    transport: asyncio.Transport

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.parser = httptools.HttpRequestParser(self)
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.backend.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.backend.connections.discard(self)
        self.writable.set()
        if self.task is not None and not self.task.done():
            self.request.lost.set()
            self.task.cancel()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self.request = Seen("", "")
        self.hash = hashlib.sha256()

    def on_url(self, url: bytes) -> None:
        self.request.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.request.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.request.method = self.parser.get_method().decode()
        if self.request.method == "POST":
            self.backend.seen.append(self.request)

    def on_body(self, body: bytes) -> None:
        self.hash.update(body)
        self.request.size += len(body)
        if self.request.size <= KEPT:
            self.request.body += body

    def on_message_complete(self) -> None:
        self.request.sha256 = self.hash.hexdigest()
        self.request.whole = True
        if self.request.method == "POST":
            self.task = asyncio.ensure_future(self.answer(self.request))
        else:
            self.control(self.request)

    def control(self, request: Seen) -> None:
        """What a router asks an engine besides work."""
        known = {
            "/health": b"{}",
            "/v1/models": json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode(),
        }
        body = known.get(request.path.partition("?")[0])
        if body is None:
            self.head(404, {"content-length": "0"})
        else:
            self.head(200, {"content-length": str(len(body)), "content-type": "application/json"})
            self.transport.write(body)

    def head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Said", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode())

    async def write(self, *parts: bytes) -> None:
        for part in parts:
            self.transport.write(part)
            await self.writable.wait()

    async def chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def answer(self, request: Seen) -> None:
        how = request.headers.get("x-answer", "json")
        coming = self.backend.expected.pop(how, None)
        if coming is not None and not coming.done():
            coming.set_result(request)
        kind, *numbers = how.split(":")
        first, second = [*(int(n) for n in numbers), 0, 0][:2]
        if kind == "sse":
            await self.stream(first, second / 1000)
        elif kind == "gate":
            await self.stream(first + 3, 0.0, held_at=first)
        elif kind == "bytes":
            self.head(200, {"content-length": str(first), "content-type": "application/json"})
            await self.write(noise(first))
        elif kind == "chunks":
            self.head(200, {"transfer-encoding": "chunked", "content-type": "text/event-stream"})
            data = noise(first * second)
            for at in range(0, len(data), second):
                await self.chunk(data[at : at + second])
            await self.write(b"0\r\n\r\n")
        else:
            await self.json(request, kind, first)

    async def json(self, request: Seen, kind: str, number: int) -> None:
        told = {"sha256": request.sha256, "size": request.size, "model": MODEL, "usage": USAGE}
        body = json.dumps(told).encode()
        headers = {"content-type": "application/json", "x-replica": str(self.backend.port)}
        if kind == "slow":
            await asyncio.sleep(number / 1000)
        if kind == "held":
            await self.backend.gate.wait()
        if kind == "trailers":
            self.head(200, headers | {"transfer-encoding": "chunked", "trailer": "x-last"})
            await self.chunk(body)
            await self.write(b"0\r\nx-last: said\r\n\r\n")
            return
        status = number if kind == "status" else 200
        self.head(status, headers | {"content-length": str(len(body))})
        if kind == "cut":
            self.transport.write(body[: len(body) // 2])
            self.transport.close()
            return
        await self.write(body)

    async def stream(self, count: int, pause_s: float, held_at: int = -1) -> None:
        """Chat events like vLLM's, usage in the last but one line."""
        self.head(
            200,
            {
                "content-type": "text/event-stream; charset=utf-8",
                "transfer-encoding": "chunked",
                "x-replica": str(self.backend.port),
            },
        )
        for number in range(count):
            if number == held_at:
                await self.backend.gate.wait()
            await self.chunk(event({"delta": {"content": f"w{number} "}, "index": 0}))
            await asyncio.sleep(pause_s)
        await self.chunk(event(None, usage=USAGE))
        await self.chunk(b"data: [DONE]\n\n")
        await self.write(b"0\r\n\r\n")


USAGE = {
    "prompt_tokens": 70,
    "completion_tokens": 10,
    "total_tokens": 80,
    "prompt_tokens_details": {"cached_tokens": 48},
}


def event(choice: dict[str, object] | None, **more: object) -> bytes:
    told = {"id": "c-1", "object": "chat.completion.chunk", "model": MODEL, **more}
    told["choices"] = [] if choice is None else [{**choice, "finish_reason": None}]
    return b"data: " + json.dumps(told).encode() + b"\n\n"
