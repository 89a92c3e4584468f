"""The way to the picker: a relay on loopback that speaks TLS as gateways do, and counts.

Gateways connect over TLS without looking at the certificate, which grpcio cannot be told. So the
gRPC client connects to this relay in plaintext, and the relay to the picker. It also sees what a
gRPC library hides: how many connections were opened, and which protocol ALPN chose.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from warmlane.envoy.conformance.target import Target

READ_BYTES = 262_144
CLOSE_S = 0.5


def tls_context(target: Target) -> ssl.SSLContext | None:
    """The relay's side towards the picker; None: plaintext. OSError for an unreadable CA."""
    if target.tls == "none":
        return None
    context = ssl.create_default_context(cafile=target.ca or None)
    if target.tls == "skip":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


class Tunnel:
    """`await open()`, then connect to `port` on 127.0.0.1; `await close()`."""

    def __init__(self, target: Target, host: str, port: int) -> None:
        self._host, self._port_there = host, port
        self._context = tls_context(target)
        self._name = (target.server_name or host) if self._context is not None else None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.alpn: str | None = None
        self.error = ""

    @property
    def port(self) -> int:
        assert self._server is not None, "not open"
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reach(self, timeout_s: float) -> None:
        """One connection there and back. OSError (TLS has its own kinds) when that fails."""
        _, writer = await asyncio.wait_for(self._connect(), timeout_s)
        await _hang_up(writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # A picker that does not answer a TLS close must not hold up the next case.
        reader, writer = await asyncio.open_connection(
            self._host,
            self._port_there,
            ssl=self._context,
            server_hostname=self._name,
            ssl_shutdown_timeout=None if self._context is None else CLOSE_S,
        )
        found = writer.get_extra_info("ssl_object")
        self.alpn = found.selected_alpn_protocol() if found is not None else None
        return reader, writer

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except asyncio.CancelledError:
            # The server's own callback would report a cancelled task as an unhandled error.
            return
        finally:
            self._tasks.discard(task)
            await _hang_up(writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await self._connect()
        except OSError as error:
            self.error = str(error)
            return
        self.connections += 1
        both = [
            asyncio.ensure_future(_pump(reader, there[1])),
            asyncio.ensure_future(_pump(there[0], writer)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            await _hang_up(there[1])


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
