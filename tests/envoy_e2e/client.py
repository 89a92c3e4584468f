"""HTTP/1.1 and HTTP/2 clients that say everything about an answer, also how it failed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import httptools

PATIENCE_S = 60.0
READ = 2**16


@dataclass
class Answer:
    """`error` is empty when the answer is whole. Header names are lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Ask:
    """A request. `pieces`: the body, chunked (HTTP/1.1) or in these DATA frames (HTTP/2)."""

    body: bytes = b""
    path: str = "/v1/chat/completions"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: AsyncIterable[bytes] | None = None
    trailers: Mapping[str, str] = field(default_factory=dict)
    host: str = "gateway.test"


class _Http1Answer:
    """httptools' callbacks, gathered."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.parser = httptools.HttpResponseParser(self)
        self.parts: list[bytes] = []
        self.in_body = self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        where = self.answer.trailers if self.in_body else self.answer.headers
        where[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.answer.status = self.parser.get_status_code()
        self.in_body = True

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.done = True


class Http1:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.coming = _Http1Answer()

    @classmethod
    async def connect(cls, port: int) -> Http1:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, ask: Ask) -> None:
        """The whole request; a reset by the peer while sending is left for `read` to tell."""
        lines = [f"{ask.method} {ask.path} HTTP/1.1", f"host: {ask.host}"]
        lines += [f"{name}: {value}" for name, value in ask.headers.items()]
        if ask.pieces is not None:
            lines.append("transfer-encoding: chunked")
        elif ask.body or ask.method == "POST":
            lines.append(f"content-length: {len(ask.body)}")
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + ask.body)
        try:
            if ask.pieces is not None:
                async for piece in ask.pieces:
                    self.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                    await self.writer.drain()
                tail = "".join(f"{name}: {value}\r\n" for name, value in ask.trailers.items())
                self.writer.write(b"0\r\n" + tail.encode() + b"\r\n")
            await self.writer.drain()
        except ConnectionError:
            return

    async def read(self, until: bytes | None = None) -> Answer:
        """The answer; with `until`, as soon as its body holds these bytes (read on with `read`)."""
        got = self.coming
        try:
            while not got.done and (until is None or until not in b"".join(got.parts)):
                data = await asyncio.wait_for(self.reader.read(READ), PATIENCE_S)
                if not data:
                    got.answer.error = "closed"
                    break
                got.parser.feed_data(data)
        except ConnectionError:
            got.answer.error = "reset"
        got.answer.body = b"".join(got.parts)
        if got.done:
            self.coming = _Http1Answer()
        return got.answer

    async def ask(self, ask: Ask) -> Answer:
        sending = asyncio.ensure_future(self.send(ask))
        try:
            return await self.read()
        finally:
            sending.cancel()

    def close(self) -> None:
        self.writer.transport.abort()


class Http2:
    """One connection with prior knowledge, many requests at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.wire = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.answers: dict[int, Answer] = {}
        self.done: dict[int, asyncio.Event] = {}
        self.window = asyncio.Event()
        self.arrived = asyncio.Event()
        self.pump: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, port: int) -> Http2:
        made = cls(*await asyncio.open_connection("127.0.0.1", port))
        made.wire.initiate_connection()
        made.wire.increment_flow_control_window(2**24)
        made.flush()
        made.pump = asyncio.ensure_future(made.receive())
        return made

    def flush(self) -> None:
        self.writer.write(self.wire.data_to_send())

    async def receive(self) -> None:
        try:
            while data := await self.reader.read(READ):
                for event in self.wire.receive_data(data):
                    self.take(event)
                self.arrived.set()
                self.flush()
        except ConnectionError:
            pass  # told below: every open answer is cut
        for number, done in self.done.items():
            if not done.is_set():
                self.answers[number].error = "closed"
                done.set()

    def take(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", 0)
        if isinstance(event, h2.events.WindowUpdated):
            self.window.set()
        if number not in self.answers:
            return
        answer = self.answers[number]
        if isinstance(event, h2.events.ResponseReceived):
            answer.headers = dict(event.headers)
            answer.status = int(answer.headers.pop(":status"))
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            self.wire.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = dict(event.headers)
        elif isinstance(event, h2.events.StreamEnded):
            self.done[number].set()
        elif isinstance(event, h2.events.StreamReset):
            if not self.done[number].is_set():
                answer.error = f"reset {event.error_code}"
            self.done[number].set()
            self.window.set()

    async def ask(self, ask: Ask) -> Answer:
        return await self.whole(await self.send(ask))

    async def whole(self, number: int) -> Answer:
        """The answer of a stream, when it is all there."""
        await asyncio.wait_for(self.done[number].wait(), PATIENCE_S)
        return self.answers[number]

    async def begun(self, number: int, until: bytes) -> Answer:
        """The answer of a stream as soon as its body holds these bytes."""
        while until not in self.answers[number].body and not self.done[number].is_set():
            self.arrived.clear()
            await asyncio.wait_for(self.arrived.wait(), PATIENCE_S)
        return self.answers[number]

    async def send(self, ask: Ask) -> int:
        """The whole request, as far as the peer takes it; its stream."""
        number = self.wire.get_next_available_stream_id()
        self.answers[number], self.done[number] = Answer(), asyncio.Event()
        head = {":method": ask.method, ":path": ask.path, ":scheme": "http"}
        head |= {":authority": ask.host, **ask.headers}
        empty = not ask.body and ask.pieces is None
        self.wire.send_headers(number, list(head.items()), end_stream=empty)
        self.flush()
        if empty:
            return number
        async for piece in ask.pieces or _one(ask.body):
            await self.data(number, piece)
        if self.done[number].is_set():
            return number  # answered or reset before the end of the request
        if ask.trailers:
            self.wire.send_headers(number, list(ask.trailers.items()), end_stream=True)
        else:
            self.wire.end_stream(number)
        self.flush()
        return number

    async def data(self, number: int, piece: bytes) -> None:
        """One piece within the windows."""
        view = memoryview(piece)
        while view and not self.done[number].is_set():
            room = self.wire.local_flow_control_window(number)
            room = min(room, self.wire.max_outbound_frame_size, len(view))
            if room <= 0:
                self.window.clear()
                await asyncio.wait_for(self.window.wait(), PATIENCE_S)
                continue
            self.wire.send_data(number, bytes(view[:room]))
            view = view[room:]
            self.flush()
            await self.writer.drain()

    def reset(self, number: int) -> None:
        """Cancel one request."""
        self.wire.reset_stream(number, 8)
        self.flush()

    def close(self) -> None:
        if self.pump is not None:
            self.pump.cancel()
        self.writer.transport.abort()


async def _one(body: bytes) -> AsyncIterable[bytes]:
    yield body
