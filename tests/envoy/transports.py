"""Both transports behind one call, and handlers that say what they saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from warmlane.envoy.streams import Methods, TransportLimits
from warmlane.envoy.tls import Tls
from warmlane.envoy.transport_grpcio import start_grpcio
from warmlane.envoy.transport_native import NativeLimits, start_native, why_missing

ECHO = "/test.Service/Echo"
NAMES = [
    "grpcio",
    pytest.param("native", marks=pytest.mark.skipif(bool(why_missing()), reason=why_missing())),
]
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Echo:
    """Answers each message with itself, ends well after the client; `heard` is its transcript."""

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


class Later(Echo):
    """Answers in a later turn of the loop."""

    def receive(self, message: bytes) -> None:
        asyncio.get_running_loop().call_soon(self._answer, message)

    def half_closed(self) -> None:
        asyncio.get_running_loop().call_soon(self._end)

    def _answer(self, message: bytes) -> None:
        super().receive(message)
        self.wake()

    def _end(self) -> None:
        super().half_closed()
        self.wake()


class Keeper:
    """A factory that remembers its handlers."""

    def __init__(self, kind: Callable[[Callable[[], None]], Any] = Echo) -> None:
        self.kind = kind
        self.handlers: list[Any] = []

    def __call__(self, wake: Callable[[], None]) -> Any:
        self.handlers.append(self.kind(wake))
        return self.handlers[-1]


Listen = Callable[..., Awaitable[Any]]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """`start`, with what it made closed at the end of the test, however that ends."""
    made: list[Any] = []

    async def started(*args: Any, **kwargs: Any) -> Any:
        made.append(await start(*args, **kwargs))
        return made[-1]

    yield started
    for transport in made:
        await transport.close()


async def start(
    name: str, methods: Methods, tls: Tls | None = None, limits: TransportLimits | None = None
) -> Any:
    """A listening transport on a free port."""
    bounds = limits or TransportLimits()
    if name == "grpcio":
        return await start_grpcio(methods, host="127.0.0.1", port=0, tls=tls, limits=bounds)
    native = NativeLimits(
        streams_per_connection=bounds.streams,
        message_bytes=bounds.message_bytes,
        stream_bytes=2 * bounds.message_bytes,
        held_bytes=bounds.buffered_bytes,
    )
    context = None if tls is None else tls.context
    return await start_native(methods, host="127.0.0.1", port=0, tls=context, limits=native)


def call(channel: grpc.aio.Channel, path: str = ECHO) -> Any:
    """An open bidirectional call, bytes both ways."""
    return channel.stream_stream(path, request_serializer=bytes, response_deserializer=bytes)()
