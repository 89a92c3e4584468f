"""A client that plays Envoy towards one picker, in frames made by hand: cheap enough to time it.

One connection. A decision is one stream: request headers and the whole body in full duplex, then
the answer, then RST_STREAM as Envoy ends it. Header blocks are constant and need no dynamic table,
those of the server are skipped; only frame heads are read. What it sends is checked by the picker,
what comes is checked for being an answer that names a replica.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Sequence
from typing import cast

from warmlane.envoy.proto.messages import ProcessingRequest

FULL_DUPLEX = 4
ENDPOINT = b"x-gateway-destination-endpoint"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
WINDOW = 1 << 20


class PickerError(Exception):
    """The picker did something else than answer."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def literal(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text


# HPACK (RFC 7541): indexed POST and http, the rest literal without indexing.
HEAD = b"\x83\x86\x04" + literal(b"/envoy.service.ext_proc.v3.ExternalProcessor/Process")
HEAD += b"\x01" + literal(b"picker") + b"\x0f\x10" + literal(b"application/grpc")
HEAD += b"\x00" + literal(b"te") + literal(b"trailers")


def grpc_message(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


class Question:
    """One prepared request: the frames of a stream but for its number."""

    def __init__(self, body: bytes) -> None:
        head = ProcessingRequest()
        pairs = {":method": "POST", ":path": "/v1/chat/completions", "host": "bench"}
        pairs |= {"content-type": "application/json", "content-length": str(len(body))}
        for name, value in pairs.items():
            head.request_headers.headers.headers.add(key=name, raw_value=value.encode())
        head.protocol_config.request_body_mode = FULL_DUPLEX
        last = ProcessingRequest()
        last.request_body.body, last.request_body.end_of_stream = body, True
        self.first = grpc_message(head.SerializeToString())
        self.rest = grpc_message(last.SerializeToString())

    def frames(self, stream: int) -> bytes:
        out = [frame(HEADERS, 4, stream, HEAD), frame(DATA, 0, stream, self.first)]
        for at in range(0, len(self.rest), 16_384):
            out.append(frame(DATA, 0, stream, self.rest[at : at + 16_384]))
        return b"".join(out)


class Gateway(asyncio.Protocol):
    """`ask` sends one question; `times` are seconds from its last byte to the answer's first."""

    # INITIAL_WINDOW_SIZE, and a wide window for the connection.
    PREFACE = (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WINDOW))
        + frame(8, 0, 0, struct.pack(">I", 1 << 30))
    )

    def __init__(self) -> None:
        self.times: list[float] = []
        self.answered = 0
        self.asked: dict[int, float] = {}
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._next = 1
        self._rest = b""
        self._taken = 0
        self._idle = asyncio.Event()
        self.ready = asyncio.Event()  # the picker's windows are known

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.write(self.PREFACE)

    def close(self) -> None:
        """Leave; what is open is not waited for."""
        self.failed.cancel()
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"connection lost: {error}")

    def _fail(self, why: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(PickerError(why))
        self._idle.set()
        self.ready.set()

    def number(self) -> int:
        """The next stream's."""
        self._next += 2
        return self._next - 2

    def ask(self, question: Question) -> None:
        stream = self.number()
        data = question.frames(stream)
        self.asked[stream] = time.perf_counter()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while len(data) - at >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBI", data, at)
            size = high << 16 | low
            if len(data) - at - 9 < size:
                break
            self._frame(kind, flags, stream, data[at + 9 : at + 9 + size])
            at += 9 + size
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._taken += len(payload)
            if self._taken > 1 << 28:
                self.transport.write(frame(8, 0, 0, struct.pack(">I", self._taken)))
                self._taken = 0
            started = self.asked.pop(stream, None)
            if started is None:
                return  # more of an answer that is in already
            self.times.append(time.perf_counter() - started)
            if ENDPOINT not in payload:
                self._fail(f"no replica in the answer: {payload[:200]!r}")
            self.answered += 1
            self.transport.write(frame(RST_STREAM, 0, stream, struct.pack(">I", 0)))
            if not self.asked:
                self._idle.set()
        elif kind == HEADERS and flags & 1 and stream in self.asked:
            self._fail("the stream ended without an answer")
        elif kind == RST_STREAM and stream in self.asked:
            self._fail(f"reset: {payload!r}")
        elif kind == GOAWAY:
            self._fail(f"GOAWAY: {payload!r}")
        elif kind in (SETTINGS, PING) and not flags & 1:
            self.transport.write(frame(kind, 1, 0, payload if kind == PING else b""))
            self.ready.set()

    async def settled(self) -> None:
        """Every question is answered; PickerError: one is not."""
        while self.asked:
            self._idle.clear()
            await asyncio.wait_for(self._idle.wait(), 10)
            if self.failed.done():
                self.failed.result()

    async def flood(self, questions: Sequence[Question], count: int, at_once: int) -> None:
        """Closed loop: `count` questions, at most `at_once` open."""
        for number in range(0, count, at_once):
            for offset in range(number, min(number + at_once, count)):
                self.ask(questions[offset % len(questions)])
            await self.settled()

    async def pace(
        self, questions: Sequence[Question], rate: float, seconds: float
    ) -> tuple[list[float], list[float]]:
        """Open loop: `rate` a second. Seconds to the answers, and how late each one was asked."""
        self.times = []
        late: list[float] = []
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = start + number / rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            late.append(time.perf_counter() - due)
            self.ask(questions[number % len(questions)])
            if self.failed.done():
                self.failed.result()
        await self.settled()
        return self.times, late


async def connect(port: int) -> Gateway:
    """A gateway that speaks to the picker at this port of the loopback address."""
    loop = asyncio.get_running_loop()
    _, made = await loop.create_connection(Gateway, "127.0.0.1", port)
    await asyncio.wait_for(made.ready.wait(), 10)
    return made
