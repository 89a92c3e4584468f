"""One HTTP request taken through a picker the way Envoy does it, in any body mode.

`Exchange.request` sends the request phase and waits until Envoy would forward it, refuse it or
fail; `Exchange.respond` the response phase. Everything sent and received is one line in `log`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import msgspec

from warmlane.envoy.conformance import wire
from warmlane.envoy.conformance.client import End, Stream
from warmlane.envoy.conformance.rules import Side
from warmlane.envoy.conformance.target import BodyMode
from warmlane.envoy.conformance.wire import Extras, Headers, Reply

DESTINATION = "x-gateway-destination-endpoint"
SUBSET = "x-gateway-destination-endpoint-subset"
SUBSET_SPACE = "envoy.lb.subset_hint"
SERVED = "x-gateway-destination-endpoint-served"
SPACE = "envoy.lb"
PIECE_BYTES = 16_384  # what Envoy reads from a client's socket at once and hands on


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The request phase. chunks: the body as it arrives; none and no trailers: no body at all.

    unfinished: the body's end does not come with it (`Exchange.more` brings it).
    """

    method: str = "POST"
    path: str = "/v1/chat/completions"
    headers: tuple[tuple[str, str], ...] = ()
    chunks: tuple[bytes, ...] = ()
    trailers: tuple[tuple[str, str], ...] | None = None
    metadata: dict[str, dict[str, Any]] = {}
    mode: BodyMode | None = None
    unwaited: bool = False
    observability: bool = False
    text_values: bool = False
    length: bool = True
    unfinished: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def pairs(self) -> Headers:
        """As Envoy writes them: pseudo headers first, names in lower case."""
        pairs: Headers = [
            (":method", self.method.encode()),
            (":path", self.path.encode()),
            (":scheme", b"http"),
            (":authority", b"llm.example"),
            ("user-agent", b"epp-conformance"),
        ]
        if self.chunks:
            pairs.append(("content-type", b"application/json"))
            if self.length:
                pairs.append(("content-length", str(len(self.body)).encode()))
        named = {name for name, _ in self.headers}
        pairs = [pair for pair in pairs if pair[0] not in named]
        return pairs + [(name, value.encode()) for name, value in self.headers]


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The response phase. step: each chunk goes only after the one before it came back.

    unfinished: the body's end never comes.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    chunks: tuple[bytes, ...] = ()
    trailers: tuple[tuple[str, str], ...] | None = None
    served: str | None = None
    step: bool = False
    unfinished: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def pairs(self) -> Headers:
        pairs: Headers = [(":status", str(self.status).encode())]
        return pairs + [(name, value.encode()) for name, value in self.headers]


def pieces(body: bytes, size: int = PIECE_BYTES) -> tuple[bytes, ...]:
    """A body in chunks of at most `size` bytes; an empty one is a single empty chunk."""
    return tuple(body[at : at + size] for at in range(0, len(body), size)) or (b"",)


class Exchange:
    """One gRPC stream and Envoy's view of it."""

    def __init__(self, stream: Stream, mode: BodyMode, phase: str, timeout_s: float) -> None:
        self.stream = stream
        self.timeout_s = timeout_s
        self.up = Side("request", mode)
        back = BodyMode.FULL_DUPLEX_STREAMED if phase == "full" else BodyMode.NONE
        self.down = Side("response", back)
        self.replies: list[Reply] = []
        self.log: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.immediate: Reply | None = None
        self.end: End | None = None
        self.stalled = ""
        self._broken: list[str] = []

    @property
    def broken(self) -> list[str]:
        """Each way in which the picker left the protocol so far."""
        return self._broken + self.up.broken + self.down.broken

    @property
    def destination(self) -> str | None:
        """The endpoint header as the upstream request would carry it."""
        found = [value for name, value in self.up.headers if name == DESTINATION]
        return b",".join(found).decode("latin-1") if found else None

    @property
    def over(self) -> bool:
        return self.immediate is not None or self.end is not None

    def upstream(self, name: str) -> list[bytes]:
        """The values of one header of the request as it would go upstream."""
        return [value for key, value in self.up.headers if key == name]

    # Sending

    async def _send(self, line: str, data: bytes) -> None:
        self.log.append(f"> {line} ({len(data)} B)")
        if not await self.stream.send(data):
            await self._pump_until(lambda: self.over)

    async def request(self, request: Request, *, wait: bool = True) -> Exchange:
        """The request phase. wait: until Envoy needs nothing more from the picker."""
        modes = (self.up.mode, self.down.mode)
        extras = Extras(
            metadata=request.metadata,
            modes=modes,
            unwaited=request.unwaited,
            observability=request.observability,
            text_values=request.text_values,
        )
        later = Extras(metadata=request.metadata, observability=request.observability)
        end = not request.chunks and request.trailers is None
        pairs = request.pairs()
        data = wire.headers("request", pairs, end=end, extras=extras)
        self.up.sent_headers(pairs, end)
        await self._send(f"request_headers {request.method} {request.path} end={end}", data)
        if self.up.mode is not BodyMode.FULL_DUPLEX_STREAMED and not request.unwaited:
            await self._settle()
        if not self.over and self.up.mode is not BodyMode.NONE:
            await self._send_body("request", self.up, request, later)
        if wait and not self.over:
            await self._settle()
        return self

    async def more(self, data: bytes, *, end: bool = True) -> Exchange:
        """A further chunk of an unfinished request body."""
        self.up.sent_body(data, end)
        line = f"request_body {len(data)} bytes end={end}"
        await self._send(line, wire.body("request", data, end=end))
        if end:
            await self._settle()
        return self

    async def resume(self) -> Exchange:
        """Go on waiting for what did not come in time."""
        self.stalled = ""
        await self._settle()
        return self

    async def respond(self, response: Response) -> Exchange:
        """The response phase, after the request went upstream."""
        space = {SPACE: {SERVED: response.served}} if response.served is not None else {}
        extras = Extras(metadata=space)
        end = not response.chunks and response.trailers is None
        pairs = response.pairs()
        self.down.sent_headers(pairs, end)
        await self._send(
            f"response_headers {response.status} end={end}",
            wire.headers("response", pairs, end=end, extras=extras),
        )
        if self.down.mode is BodyMode.NONE:
            await self._settle()
            if response.trailers is not None and not self.over:
                await self._send_trailers("response", self.down, response.trailers, extras)
        elif not self.over:
            if response.step:
                await self._settle()
            await self._send_body("response", self.down, response, extras)
        await self._settle()
        return self

    async def _send_body(
        self, side: Literal["request", "response"], to: Side, message: Any, extras: Extras
    ) -> None:
        chunks = message.chunks
        if to.mode in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL) and chunks:
            chunks = (b"".join(chunks),)
        for number, chunk in enumerate(chunks):
            if self.over:
                return
            end = number == len(chunks) - 1 and message.trailers is None
            end &= not message.unfinished
            to.sent_body(chunk, end)
            await self._send(
                f"{side}_body {len(chunk)} bytes end={end}",
                wire.body(side, chunk, end=end, extras=extras),
            )
            if getattr(message, "step", False) and not end and chunk:
                back = sum(map(len, chunks[: number + 1]))
                await self._pump_until(lambda back=back: self.over or len(to.body) >= back)
                if len(to.body) < back and not self.over:
                    self.stalled = f"chunk {number + 1} of the {side} body did not come back"
                    return
        if message.trailers is not None and not self.over:
            if to.mode is not BodyMode.FULL_DUPLEX_STREAMED:
                await self._settle()
            await self._send_trailers(side, to, message.trailers, extras)

    async def _send_trailers(
        self, side: str, to: Side, trailers: tuple[tuple[str, str], ...], extras: Extras
    ) -> None:
        pairs: Headers = [(name, value.encode()) for name, value in trailers]
        to.sent_trailers(pairs)
        await self._send(f"{side}_trailers", wire.trailers(side, pairs, extras=extras))

    # Receiving

    async def _settle(self) -> None:
        """Until Envoy waits for nothing more, or `timeout_s` of silence."""
        done = await self._pump_until(
            lambda: self.over or not (self.up.waits_for or self.down.waits_for)
        )
        if not done:
            self.stalled = self.up.waits_for or self.down.waits_for

    async def _pump_until(self, done: Any) -> bool:
        while not done():
            if not await self.take(self.timeout_s):
                return bool(done())
        return True

    async def take(self, timeout_s: float) -> bool:
        """Receive one message or the end of the stream; False when nothing came in time."""
        item = await self.stream.receive(timeout_s)
        if item is None:
            return False
        if isinstance(item, End):
            if self.end is None:
                self.log.append(f"< end of stream, grpc-status {item.code} {item.message}".rstrip())
            self.end = item
            return False
        try:
            reply = wire.decode(item)
        except ValueError as error:
            self._broken.append(f"{error} ({item[:64].hex()})")
            return True
        self.replies.append(reply)
        self.log.append(f"< {describe(reply)}")
        self._apply(reply)
        return True

    def _apply(self, reply: Reply) -> None:
        for space, fields in reply.metadata.items():
            held = self.metadata.setdefault(space, {})
            if isinstance(held, dict) and isinstance(fields, dict):
                held.update(fields)
        if self.immediate is not None:
            self._broken.append(f"{reply.kind or 'an empty message'} after the immediate response")
        elif reply.kind == "immediate_response":
            self.immediate = reply
        elif not reply.kind:
            self._broken.append("a ProcessingResponse without a response")
        elif reply.kind.startswith("request_"):
            self.up.on_reply(reply)
        else:
            self.down.on_reply(reply)

    async def linger(self, seconds: float) -> None:
        """Receive what still comes within that time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while self.end is None and (left := until - loop.time()) > 0:
            await self.take(left)


def describe(reply: Reply) -> str:
    """One line for people."""
    parts = [reply.kind or "empty message"]
    if reply.status:
        parts.append(str(reply.status))
    for change in reply.set_headers[:12]:
        parts.append(f"{change.name}={change.value[:80].decode('latin-1')!r}")
    if reply.remove_headers:
        parts.append("removes " + ",".join(reply.remove_headers[:12]))
    if reply.body is not None:
        shown = f" {reply.body[:120].decode('latin-1')!r}" if reply.status else ""
        parts.append(f"{len(reply.body)} bytes{shown}")
    if reply.end_of_stream:
        parts.append("end_of_stream")
    if reply.metadata:
        parts.append(f"metadata {reply.metadata}")
    return f"{' '.join(parts)} ({reply.size} B)"
