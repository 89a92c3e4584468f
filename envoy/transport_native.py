"""The native gRPC transport: connections of `_core.h2` behind an asyncio server.

Owns the listening socket, the limits, the clock of time-outs and the order of a drain. Everything
per stream is compiled. Built only where libnghttp2 was present: `why_missing` says so, and
`start_native` refuses then. Cost: one pass over the connections a second.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from warmlane.envoy.streams import Methods
from warmlane.router.errors import ConfigError

if TYPE_CHECKING:
    from warmlane._core.h2.connection import Connection

try:
    _connection: Any = import_module("warmlane._core.h2.connection")
    _streams: Any = import_module("warmlane._core.h2.streams")
    _WHY_MISSING = ""
except ImportError as error:
    _WHY_MISSING = f"the native transport is not built here ({error})"

log = logging.getLogger("warmlane.envoy")

_TICK_S = 1.0
# How long a client may take to answer the PING that goes out with the first GOAWAY. One round trip
# is enough for every stream that it opened before it saw the GOAWAY.
_NOTICE_S = 1.0
_BACKLOG = 4096


class NativeLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients of the native transport may take. The defaults suit gateways that one trusts."""

    connections: int = 1024
    # A response phase keeps a stream open for as long as the answer lasts, so this is the number
    # of answers under way; Envoy's own circuit breakers stand at 40,000 in the gateways' samples.
    streams: int = 100_000
    streams_per_connection: int = 50_000
    header_bytes: int = 32 * 1024
    message_bytes: int = 32 * 1024 * 1024
    # What one stream, and all of them, may keep: messages under way, bodies with the handler,
    # answers that are not sent. Above: RESOURCE_EXHAUSTED.
    stream_bytes: int = 64 * 1024 * 1024
    held_bytes: int = 1024 * 1024 * 1024
    stream_window_bytes: int = 1024 * 1024
    connection_window_bytes: int = 16 * 1024 * 1024
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    # A stream whose answers do not move for so long is reset.
    stall_s: float = 60.0
    # Streams that a client resets before we answered: Envoy does that when its own clients leave.
    resets_burst: float = 10_000
    resets_per_s: float = 1_000
    # SETTINGS, PING, PRIORITY, empty DATA, WINDOW_UPDATE beyond four for each frame of ours.
    control_burst: float = 10_000
    control_per_s: float = 1_000


def why_missing() -> str:
    """Why the native transport cannot run here; empty when it can."""
    return _WHY_MISSING


class NativeTransport:
    """A listening native transport. `port` is the bound one, also when 0 was asked for."""

    name = "native"

    def __init__(self, methods: Methods, limits: NativeLimits) -> None:
        self.port = 0
        self._methods = {path.encode(): factory for path, factory in methods.items()}
        names = {"held_bytes": "held_limit_bytes"}
        given = msgspec.structs.asdict(limits)
        self._shared = _streams.Shared(
            **{names.get(name, name): value for name, value in given.items()}
        )
        self._connections: set[Connection] = set()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._draining = False
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Bind and serve. OSError: the address is taken."""
        self._server = await self._loop.create_server(
            self._connection, host, port, ssl=tls, backlog=_BACKLOG
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        log.info(
            "event=native_transport port=%d libnghttp2=%s", self.port, _connection.library_version()
        )

    def _connection(self) -> Connection:
        made: Connection = _connection.Connection(
            self._shared, self._methods, _report, self._made, self._lost, self._loop
        )
        return made

    def _made(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._emptied.clear()
        if self._draining:  # accepted before the listener closed
            self._loop.call_soon(connection.drain)

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        now_s = monotonic()
        for connection in list(self._connections):
            connection.tick(now_s)

    def stats(self) -> dict[str, float]:
        """Counters since the start, and gauges: open_connections, open_streams, held_bytes."""
        counted: dict[str, float] = self._shared.stats()
        return counted

    async def drain(self, timeout_s: float) -> bool:
        """GOAWAY, no new streams, let those under way finish. True: all did in time."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.drain()
        notice = self._loop.call_later(min(_NOTICE_S, timeout_s / 2), self._drain_now)
        try:
            async with asyncio.timeout(timeout_s):
                await self._emptied.wait()
        except TimeoutError:
            return False
        finally:
            notice.cancel()
        return True

    def _drain_now(self) -> None:
        for connection in list(self._connections):
            connection.drain_now()

    async def close(self) -> None:
        """Cut what is left. Every handler hears `closed`."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._emptied.wait()


def _report(error: BaseException) -> None:
    """A handler failed: its stream ends with INTERNAL, the others go on."""
    log.error("event=grpc_handler_failed", exc_info=error)


async def start_native(
    methods: Methods,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    limits: NativeLimits | None = None,
) -> NativeTransport:
    """Serve `methods`. tls: None is plaintext; the context must offer ALPN h2.

    ConfigError: not built here. OSError: the address is taken.
    """
    if _WHY_MISSING:
        raise ConfigError(f"ext_proc.transport: native: {_WHY_MISSING}")
    transport = NativeTransport(methods, limits or NativeLimits())
    await transport.start(host, port, tls)
    return transport
