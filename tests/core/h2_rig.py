"""A gRPC client on python-h2 and a server's connection, joined in memory: no socket, no clock.

`Wire` moves bytes until both sides are quiet. The server is the compiled connection or its twin.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

LIMITS: dict[str, float] = {
    "connections": 10,
    "streams": 1000,
    "streams_per_connection": 500,
    "header_bytes": 8192,
    "message_bytes": 4_000_000,
    "stream_bytes": 8_000_000,
    "held_limit_bytes": 16_000_000,
    "stream_window_bytes": 1 << 20,
    "connection_window_bytes": 4 << 20,
    "keepalive_s": 60,
    "keepalive_timeout_s": 20,
    "stall_s": 60,
    "resets_burst": 100,
    "resets_per_s": 0,
    "control_burst": 1000,
    "control_per_s": 0,
}
PATH = "/test.Service/Echo"


def framed(message: bytes, flag: int = 0) -> bytes:
    """One gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(message)) + message


def unframed(data: bytes) -> list[bytes]:
    """All messages of `data`, which must hold whole ones."""
    found = []
    while data:
        flag, size = struct.unpack_from(">BI", data)
        assert flag == 0 and len(data) >= 5 + size
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


class Echo:
    """Answers each message with itself and ends well when the client ends; keeps a transcript."""

    made: list[Echo]

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.out: list[bytes] = []
        self.status: tuple[int, str] | None = None
        self.heard: list[bytes | str] = []

    def receive(self, message: bytes) -> None:
        self.heard.append(message)
        self.out.append(message)

    def half_closed(self) -> None:
        self.heard.append("half_closed")
        self.status = (0, "")

    def closed(self) -> None:
        self.heard.append("closed")

    def take(self) -> list[bytes]:
        taken, self.out = self.out, []
        return taken


class Loop:
    """What a connection asks of an event loop."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def call_soon(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def run(self) -> int:
        calls, self.calls = self.calls, []
        for call in calls:
            call()
        return len(calls)


class Pipe:
    """The transport: keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.sizes: list[int] = []
        self.closing = self.aborted = self.reading_paused = False

    def get_extra_info(self, name: str) -> None:
        del name

    @property
    def writes(self) -> int:
        return len(self.sizes)

    def write(self, data: bytes) -> None:
        assert type(data) is bytes and data
        assert not self.closing, "written after close"
        self.written += data
        self.sizes.append(len(data))

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def pause_reading(self) -> None:
        assert not self.reading_paused
        self.reading_paused = True

    def resume_reading(self) -> None:
        assert self.reading_paused
        self.reading_paused = False


@dataclass
class Answer:
    """What the client saw of one stream."""

    head: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """grpc-status, from trailers or from a trailers-only answer."""
        text = self.trailers.get("grpc-status", self.head.get("grpc-status"))
        return None if text is None else int(text)

    @property
    def text(self) -> str:
        return self.trailers.get("grpc-message", self.head.get("grpc-message", ""))

    @property
    def messages(self) -> list[bytes]:
        return unframed(self.data)


def _text(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {bytes(name).decode(): bytes(value).decode() for name, value in headers}


class Wire:
    """A client and a server's connection, and the handlers that were made."""

    def __init__(
        self,
        make_connection: Callable[..., Any],
        shared: Any,
        factory: Callable[[Callable[[], None]], Any] = Echo,
        *,
        auto_ack: bool = True,
        path: str = PATH,
        counts: bool = True,
    ) -> None:
        self.counts = counts  # the handlers keep a transcript
        self.handlers: list[Any] = []
        self.errors: list[BaseException] = []
        self.made = self.lost = 0
        self.loop = Loop()
        self.pipe = Pipe()
        self.shared = shared
        self.auto_ack = auto_ack
        self.answers: dict[int, Answer] = defaultdict(Answer)
        self.goaways: list[tuple[int, int]] = []
        self.pings = 0
        self._read = 0

        def make(wake: Callable[[], None]) -> Any:
            self.handlers.append(factory(wake))
            return self.handlers[-1]

        self.server = make_connection(
            shared, {path.encode(): make}, self.errors.append, self._made, self._lost, self.loop
        )
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.client = h2.connection.H2Connection(config)
        self.client.initiate_connection()
        self.server.connection_made(self.pipe)

    def _made(self, connection: object) -> None:
        assert connection is self.server and not self.made
        self.made += 1

    def _lost(self, connection: object) -> None:
        assert connection is self.server
        self.lost += 1

    def open(
        self,
        path: str = PATH,
        extra: Mapping[str, str] | None = None,
        *,
        end: bool = False,
        method: str = "POST",
        content_type: str = "application/grpc",
    ) -> int:
        """Send a head; the stream's sid."""
        sid = self.client.get_next_available_stream_id()
        head = {
            ":method": method,
            ":scheme": "http",
            ":authority": "test",
            ":path": path,
            "te": "trailers",
        }
        if content_type:
            head["content-type"] = content_type
        self.client.send_headers(sid, [*head.items(), *(extra or {}).items()], end_stream=end)
        return sid

    def send(self, sid: int, data: bytes, *, end: bool = False) -> int:
        """Send as much of `data` as the windows allow; how much that was."""
        sent = 0
        while sent < len(data) or (end and not data):
            room = min(self.client.local_flow_control_window(sid), 16_384, len(data) - sent)
            if room <= 0 and sent < len(data):
                break
            last = sent + room == len(data)
            self.client.send_data(sid, data[sent : sent + room], end_stream=end and last)
            sent += room
            if last:
                break
        return sent

    def deliver(self, data: bytes, piece: int = 0) -> None:
        """Bytes to the server, in pieces of `piece` (0: at once)."""
        step = piece or len(data) or 1
        for at in range(0, len(data), step):
            if self.pipe.closing:
                return
            self.server.data_received(bytes(data[at : at + step]))

    def step(self, piece: int = 0) -> bool:
        """Client to server, scheduled calls, server to client. False: nothing moved."""
        out = self.client.data_to_send()
        self.deliver(out, piece)
        ran = self.loop.run()
        came = bytes(self.pipe.written[self._read :])
        self._read = len(self.pipe.written)
        if came:
            self.see(came)
        return bool(out or ran or came)

    def exchange(self, piece: int = 0, most: int = 10_000) -> None:
        """Until both sides are quiet."""
        for _ in range(most):
            if not self.step(piece):
                return
        raise AssertionError("the two sides never rest")

    def see(self, data: bytes) -> None:
        """Frame by frame: python-h2 reads nothing behind a GOAWAY in one piece."""
        while data:
            size = 9 + int.from_bytes(data[:3], "big")
            self.see_frame(data[:size])
            data = data[size:]

    def see_frame(self, data: bytes) -> None:
        for event in self.client.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.answers[event.stream_id].head = _text(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                self.answers[event.stream_id].data += event.data
                if self.auto_ack:
                    size = event.flow_controlled_length
                    self.client.acknowledge_received_data(size, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                self.answers[event.stream_id].trailers = _text(event.headers)
            elif isinstance(event, h2.events.StreamEnded):
                self.answers[event.stream_id].ended = True
            elif isinstance(event, h2.events.StreamReset):
                self.answers[event.stream_id].reset = int(event.error_code)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.goaways.append((int(event.error_code), int(event.last_stream_id or 0)))
                self.client.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
            elif isinstance(event, h2.events.PingReceived):
                self.pings += 1

    def call(self, *messages: bytes, path: str = PATH, piece: int = 0) -> Answer:
        """One whole call."""
        sid = self.open(path)
        data = b"".join(framed(message) for message in messages)
        self.send_all(sid, data, end=True, piece=piece)
        return self.answers[sid]

    def send_all(self, sid: int, data: bytes, *, end: bool = False, piece: int = 0) -> None:
        """Send and exchange until all of it went, or the server has ended the stream."""
        at = self.send(sid, data, end=end)
        self.exchange(piece)
        while at < len(data) and not self.answers[sid].ended:
            sent = self.send(sid, data[at:], end=end)
            assert sent, "the server opens no window"
            at += sent
            self.exchange(piece)

    def hang_up(self) -> None:
        """The transport is gone; nothing may be kept after that."""
        self.server.connection_lost(None)
        self.loop.run()
        assert self.lost == 1
        for handler in self.handlers if self.counts else ():
            assert handler.heard.count("closed") == 1, handler.heard
            assert handler.heard[-1] == "closed"
