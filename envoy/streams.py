"""The face between a gRPC transport and what it serves: one sans-I/O object a stream.

A transport deframes HTTP/2 and gRPC and knows no method; a handler sees whole messages and knows no
socket. Both live on one event loop and one thread. Nothing here allocates per message.

    handler = methods[path](wake)
    handler.receive(message); send(handler.take()); if handler.status: send the trailers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

import msgspec

# gRPC status codes used here (grpc/grpc, doc/statuscodes.md).
OK: Final = 0
INVALID_ARGUMENT: Final = 3
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14


class StreamHandler(Protocol):
    """One gRPC stream, driven by a transport.

    status: None while the stream goes on. Once set, the transport sends what `take` still gives,
        then trailers with this code and message, and the stream is over.
    """

    status: tuple[int, str] | None

    def receive(self, message: bytes) -> None:
        """One whole message from the client. Replies are queued for `take`."""

    def half_closed(self) -> None:
        """The client ended its side; replies may still be sent."""

    def closed(self) -> None:
        """The stream is gone: reset, disconnected, or ended by our trailers. Exactly once, last."""

    def take(self) -> list[bytes]:
        """Messages to send now, in order; they are handed out once."""
        ...


# Called by a handler, on the loop, when output became ready outside of `receive`.
Wake: TypeAlias = Callable[[], None]
Factory: TypeAlias = Callable[[Wake], StreamHandler]
# gRPC path, for example "/grpc.health.v1.Health/Check". An unknown one is UNIMPLEMENTED.
Methods: TypeAlias = Mapping[str, Factory]


class TransportLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds that a transport keeps.

    streams: open at once on one connection. message_bytes: the largest message; a larger one ends
        its stream with RESOURCE_EXHAUSTED. buffered_bytes: of all streams together, in and out.
    keepalive_s: silence before a PING asks whether the peer lives.
    """

    streams: int = 4096
    message_bytes: int = 34_603_008
    buffered_bytes: int = 2_147_483_648
    keepalive_s: float = 60.0


class Transport(Protocol):
    """A listening transport, made by `start_grpcio` or `start_native`. `port` is the bound one."""

    port: int
    name: str

    def stats(self) -> dict[str, float]:
        """Counters and gauges for the admin interface and the metrics."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """GOAWAY, no new streams, let those under way finish. True: all did."""
        ...

    async def close(self) -> None:
        """Cut what is left. Every handler hears `closed`."""
