"""An endpoint picker on loopback, on either transport, and a gRPC client that plays Envoy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from tests.envoy.gateway import Answer
from warmlane.envoy.server import PROCESS, Server, start_server
from warmlane.router.build import Running, build
from warmlane.router.config_load import from_data

PATIENCE_S = 20.0
REPLICAS = ["http://127.0.0.1:9", "http://127.0.0.2:9"]  # nobody listens: nothing is sent there


@asynccontextmanager
async def picker(**options: Any) -> AsyncIterator[Server]:
    """A started picker whose replicas count as ready."""
    data: dict[str, Any] = {"pools": options.pop("pools", [{"replicas": REPLICAS}])}
    for name in ("limits", "models"):
        if name in options:
            data[name] = options.pop(name)
    options = {"port": 0, "health_port": 0, "insecure": True, "transport": "grpcio", **options}
    data["probe"] = {"interval_s": 3600.0}
    running = await build(from_data({**data, "ext_proc": options}))
    try:
        ready(running)
        server = await start_server(running)
        try:
            yield server
        finally:
            await server.close()
    finally:
        await running.close()


def ready(running: Running) -> None:
    """As a probe would find them."""
    from_probe = "a test says so"
    for pool in running.router.pools.values():
        for replica in pool:
            pool.set_state(replica.slot, type(replica.state).READY, from_probe)


@asynccontextmanager
async def channel(server: Server, port: int | None = None) -> AsyncIterator[Any]:
    """A channel to the ext_proc port, with the server's own certificate trusted."""
    address = f"127.0.0.1:{server.port if port is None else port}"
    if server.tls is None or port is not None:
        made = grpc.aio.insecure_channel(address)
    else:
        trusted = grpc.ssl_channel_credentials(server.tls.pair[1])
        options = [("grpc.ssl_target_name_override", "localhost")]
        made = grpc.aio.secure_channel(address, trusted, options)
    try:
        yield made
    finally:
        await made.close()


class Stream:
    """One external processing stream of a gateway."""

    def __init__(self, channel: Any) -> None:
        self.call = channel.stream_stream(PROCESS)()

    async def say(self, *messages: bytes) -> None:
        for message in messages:
            await asyncio.wait_for(self.call.write(message), PATIENCE_S)

    async def hear(self, count: int) -> list[Answer]:
        found = []
        for _ in range(count):
            raw = await asyncio.wait_for(self.call.read(), PATIENCE_S)
            assert raw is not grpc.aio.EOF, f"the stream ended after {len(found)} answers"
            found.append(Answer(raw))
        return found

    async def end(self) -> int:
        """Half-close; the status code of the trailers, after which nothing came."""
        await self.call.done_writing()
        assert await asyncio.wait_for(self.call.read(), PATIENCE_S) is grpc.aio.EOF
        return await self.code()

    async def code(self) -> int:
        code = await asyncio.wait_for(self.call.code(), PATIENCE_S)
        value: int = code.value[0]
        return value


def peer_certificate(port: int) -> bytes:
    """What a TLS client sees, in DER. Blocks: to be called in a thread."""
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE_S)
    return ssl.PEM_cert_to_DER_cert(pem)
