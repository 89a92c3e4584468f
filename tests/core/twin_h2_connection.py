"""Plain-Python twin of `_core.h2.connection`: the same gRPC rules over python-h2, without limits.

What a stream's handler hears and what its client sees must be the same as with the compiled one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events

from tests.core.h2_rig import framed
from tests.core.twin_h2_streams import (
    COMPRESSED,
    FED,
    TOO_LONG,
    Assembly,
    percent_encode,
)


class TwinStream:
    """One stream: its handler, what waits for a window, whether either side has ended."""

    def __init__(self, message_bytes: int) -> None:
        self.factory: Any = None
        self.handler: Any = None
        self.assembly = Assembly(message_bytes, 1 << 40)
        self.messages: list[bytes] = []
        self.tell = False  # the handler must hear that the client has ended
        self.out = b""
        self.started = self.ended = self.finished = self.over = False
        self.trailers: list[tuple[str, bytes | str]] = []


class TwinConnection:
    """The face of the compiled `Connection` as far as `h2_rig.Wire` uses it."""

    def __init__(
        self,
        message_bytes: int,
        methods: dict[bytes, Any],
        on_error: Callable[[BaseException], None],
        on_made: Callable[[Any], None],
        on_lost: Callable[[Any], None],
        loop: Any,
    ) -> None:
        self.message_bytes = message_bytes
        self.methods, self.on_error, self.loop = methods, on_error, loop
        self.on_made, self.on_lost = on_made, on_lost
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.streams: dict[int, TwinStream] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.on_made(self)
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, error: object) -> None:
        del error
        for sid in list(self.streams):
            self.bury(sid)
        self.on_lost(self)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            self.see(event)
        for sid in list(self.streams):
            self.push(sid)
        self.flush()

    def see(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.judge(event.stream_id, dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.take(event.stream_id, event.data)
        elif isinstance(event, h2.events.StreamEnded):
            self.half_close(event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            self.bury(event.stream_id)

    def judge(self, sid: int, head: dict[bytes, bytes]) -> None:
        stream = self.streams[sid] = TwinStream(self.message_bytes)
        kind = head.get(b"content-type", b"").partition(b";")[0]
        factory = self.methods.get(head[b":path"])
        if head[b":method"] != b"POST":
            self.end(sid, [(":status", "405"), ("allow", "POST")])
        elif kind not in (b"application/grpc", b"application/grpc+proto"):
            self.end(sid, [(":status", "415")])
        elif factory is None:
            self.refuse(sid, 12, "unknown method")
        elif head.get(b"grpc-encoding", b"identity") != b"identity":
            more = [("grpc-accept-encoding", "identity")]
            self.refuse(sid, 12, "compressed messages are not supported", more)
        else:
            stream.factory = factory

    def handler(self, sid: int) -> Any:
        """Made when the first message or the client's end is there."""
        stream = self.streams[sid]
        if stream.handler is None:
            stream.handler = stream.factory(lambda: self.wake(sid))
        return stream.handler

    def end(self, sid: int, head: list[tuple[str, str | bytes]]) -> None:
        stream = self.streams[sid]
        stream.finished = stream.over = stream.started = True
        self.h2.send_headers(sid, head, end_stream=True)

    def refuse(
        self, sid: int, status: int, text: str, more: list[tuple[str, str | bytes]] | None = None
    ) -> None:
        stream = self.streams[sid]
        stream.out, stream.finished = b"", True
        stream.trailers = [("grpc-status", str(status)), ("grpc-message", percent_encode(text))]
        if not stream.started:
            head: list[tuple[str, str | bytes]] = [(":status", "200")]
            head.append(("content-type", "application/grpc"))
            self.end(sid, [*head, *(more or []), *stream.trailers])
        if stream.handler is not None:
            stream.handler.closed()
            stream.handler = None

    def take(self, sid: int, data: bytes) -> None:
        stream = self.streams[sid]
        if stream.finished:
            return
        messages, code = stream.assembly.feed(data)
        stream.messages += messages
        if code == TOO_LONG:
            size = int.from_bytes(stream.assembly.data[1:5], "big")
            self.refuse(sid, 8, f"message of {size} bytes, limit {self.message_bytes}")
        elif code != FED:
            texts = ("bad message flag", "compressed message without grpc-encoding")
            self.refuse(sid, 13, texts[code == COMPRESSED])

    def half_close(self, sid: int) -> None:
        stream = self.streams.get(sid)
        if stream is None:
            return
        stream.ended = True
        if stream.finished:
            return
        if stream.assembly.data:
            self.refuse(sid, 13, "the stream ended inside a message")
        else:
            stream.tell = True

    def wake(self, sid: int) -> None:
        if sid in self.streams:
            self.push(sid)
            self.flush()

    def push(self, sid: int) -> None:
        """Take what the handler has, send what the windows allow, end what is finished."""
        stream = self.streams[sid]
        if not stream.finished:
            self.hand_over(sid)
        if stream.handler is not None and not stream.finished:
            stream.out += b"".join(framed(message) for message in stream.handler.take())
            if stream.handler.status is not None:
                status, text = stream.handler.status
                stream.finished = True
                stream.trailers = [("grpc-status", str(status))]
                if text:
                    stream.trailers.append(("grpc-message", percent_encode(text)))
        head: list[tuple[str, str | bytes]] = [(":status", "200")]
        head.append(("content-type", "application/grpc"))
        if not stream.started and stream.finished and not stream.out:
            self.end(sid, [*head, *stream.trailers])
        elif not stream.started and stream.out:
            stream.started = True
            self.h2.send_headers(sid, head)
        while stream.out:
            room = min(self.h2.local_flow_control_window(sid), 16_384, len(stream.out))
            if room <= 0:
                return
            self.h2.send_data(sid, stream.out[:room])
            stream.out = stream.out[room:]
        if stream.finished:
            if not stream.over:
                self.h2.send_headers(sid, stream.trailers, end_stream=True)
            if not stream.ended:
                self.h2.reset_stream(sid, 0)
            self.bury(sid)

    def hand_over(self, sid: int) -> None:
        """Handlers are called after the whole read; a fault in it drops its messages."""
        stream = self.streams[sid]
        messages, stream.messages = stream.messages, []
        for message in messages:
            self.handler(sid).receive(message)
        if stream.tell:
            stream.tell = False
            self.handler(sid).half_closed()

    def bury(self, sid: int) -> None:
        stream = self.streams.pop(sid, None)
        if stream is not None and stream.handler is not None:
            stream.handler.closed()
