"""gRPC streams to the picker, message by message, over grpcio. Bytes in and out, no protobuf."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import grpc
import grpc.aio

from warmlane.envoy.conformance.wire import HEALTH_CHECK, HEALTH_WATCH, PROCESS

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # A dropped connection is seen at once, and its successor comes soon enough for the next case.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)


OWN_ERROR = "Internal error from Core"


def _same(data: bytes) -> bytes:
    return data


class End(NamedTuple):
    """How a stream ended: the gRPC status number and its message."""

    code: int
    message: str


class Stream:
    """One bidirectional stream. Replies are read as they come, so the picker never waits for us."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self._call = call
        self._inbox: asyncio.Queue[bytes | End] = asyncio.Queue()
        self._reader = asyncio.ensure_future(self._read())
        self.end: End | None = None

    async def _read(self) -> None:
        try:
            while isinstance(data := await self._call.read(), bytes):
                self._inbox.put_nowait(data)
        except grpc.aio.AioRpcError:
            # Its status is asked for below, the same way as after a clean end.
            pass
        self._inbox.put_nowait(await self._status())

    async def _status(self) -> End:
        """How it ended. A write that meets the end makes grpcio tell an error of its own, until
        the picker's status, which is on its way, takes its place."""
        end = End(0, OWN_ERROR)
        for _ in range(100):
            code = await self._call.code()
            end = End(code.value[0], str(await self._call.details() or ""))
            if end.message != OWN_ERROR:
                break
            await asyncio.sleep(0.01)
        return end

    async def send(self, data: bytes) -> bool:
        """False: the stream is over, nothing was sent."""
        try:
            await self._call.write(data)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def half_close(self) -> None:
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # Already over: the reader tells how.
            return

    async def receive(self, timeout_s: float) -> bytes | End | None:
        """The next message, the end (again and again), or None when nothing came in time."""
        if self.end is not None:
            return self.end
        try:
            item = await asyncio.wait_for(self._inbox.get(), timeout_s)
        except TimeoutError:
            return None
        if isinstance(item, End):
            self.end = item
        return item

    async def reset(self) -> None:
        """Cut the stream as Envoy does: RST_STREAM."""
        self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)


class Client:
    """A channel to one picker's port."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)

    async def close(self) -> None:
        await self._channel.close()

    def stream(self, path: str = PROCESS, *, gzip: bool = False) -> Stream:
        method = self._channel.stream_stream(
            path, request_serializer=_same, response_deserializer=_same
        )
        return Stream(method(compression=grpc.Compression.Gzip if gzip else None))

    async def check(self, request: bytes, timeout_s: float) -> bytes | End:
        """grpc.health.v1.Health/Check."""
        method = self._channel.unary_unary(
            HEALTH_CHECK, request_serializer=_same, response_deserializer=_same
        )
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return End(error.code().value[0], str(error.details() or ""))

    async def watch(self, request: bytes, timeout_s: float) -> bytes | End:
        """The first message of grpc.health.v1.Health/Watch."""
        method = self._channel.unary_stream(
            HEALTH_WATCH, request_serializer=_same, response_deserializer=_same
        )
        call = method(request, timeout=timeout_s)
        try:
            data = await call.read()
            return data if isinstance(data, bytes) else End(0, "no message")
        except grpc.aio.AioRpcError as error:
            return End(error.code().value[0], str(error.details() or ""))
        finally:
            call.cancel()
