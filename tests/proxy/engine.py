"""Engines as raw sockets with a script: what matters is what they do wrong, not what they compute.

Also the words of the wire that scripts and tests are written with.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

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


BEGUN = SSE_HEAD + chunk(*STREAM[:3])
# What an engine says that is full, not ill.
FULL = whole(
    b'{"error":{"message":"queue full","type":"Service Unavailable","param":null,"code":503}}', 503
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
