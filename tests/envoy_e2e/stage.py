"""Replicas, pickers and one Envoy, running: what the tests of this folder play on.

Pickers speak plain text unless a test is about TLS. Every stage checks at its end that no picker
has an open or leaked ticket, and that none was spoken to out of turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from . import config
from .backend import MODEL, Backend, Seen
from .client import Answer, Ask, Http1, Http2
from .config import Tree
from .envoy_process import Envoy
from .picker_process import Picker

NATIVE = find_spec("warmlane._core.h2") is not None
BUILT = ("grpcio", "native") if NATIVE else ("grpcio",)
CLIENTS = {"http1": Http1, "http2": Http2}


def chat(text: str = "hello", **fields: object) -> bytes:
    """A chat request's body."""
    told = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return json.dumps(told).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Stage:
    """What runs. Listeners are named; the config's own is `inference`."""

    envoy: Envoy
    backends: list[Backend]
    pickers: dict[str, Picker] = field(default_factory=dict)

    @property
    def picker(self) -> Picker:
        [only] = self.pickers.values()
        return only

    async def connect(self, client: str = "http1", listener: str = "inference") -> Http1 | Http2:
        return await CLIENTS[client].connect(self.envoy.ports[listener])

    async def ask(self, ask: Ask, client: str = "http1", listener: str = "inference") -> Answer:
        """One request on a connection of its own."""
        peer = await self.connect(client, listener)
        try:
            return await peer.ask(ask)
        finally:
            peer.close()

    def gate(self, *, opened: bool) -> None:
        """Shut: answers of the kinds `gate` and `held` wait. Opened: they go on."""
        for backend in self.backends:
            if opened:
                backend.gate.set()
            else:
                backend.gate.clear()

    def expect(self, how: str) -> asyncio.Future[Seen]:
        """The next request that asks for this answer, as its replica sees it."""
        coming: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        for backend in self.backends:
            backend.expected[how] = coming
        return coming

    async def settled(self) -> None:
        for picker in self.pickers.values():
            await picker.settled()
            wrong = await picker.total("warmlane_ext_proc_protocol_errors_total")
            assert wrong == 0, picker.log.read_text()[-2000:]


@asynccontextmanager
async def stage(
    folder: Path,
    *,
    name: str = config.ORIGINAL_DST,
    pickers: dict[str, tuple[str, ...]],
    edit: Callable[[Tree, list[Backend]], None] | None = None,
    tls: bool = False,
    replicas: int = 2,
    host: str = "127.0.0.1",
    stays: bool = True,
) -> AsyncIterator[Stage]:
    """A stage. pickers: options by cluster name; the first one serves the listener `inference`.

    edit: changes the config before Envoy starts. stays: the pickers still run at the end.
    """
    backends = [Backend(host) for _ in range(replicas)]
    for backend in backends:
        await backend.start()
    endpoints = [backend.endpoint for backend in backends]
    options = () if tls else ("--insecure",)
    running = {
        cluster: Picker(endpoints, folder, *options, *more) for cluster, more in pickers.items()
    }
    tree = config.load(name)
    if name == config.OVERRIDE_HOST:
        config.replicas_at(tree, [backend.port for backend in backends])
    for cluster, picker in running.items():
        config.picker_at(tree, picker.port, tls, cluster)
    first = next(iter(running))
    config.ext_proc(config.listener(tree))["grpc_service"]["envoy_grpc"]["cluster_name"] = first
    if "picker" not in running:
        tree["static_resources"]["clusters"].remove(config.cluster(tree, "picker"))
    if edit is not None:
        edit(tree, backends)
    envoy = Envoy(tree, folder)
    made = Stage(envoy, backends, running)
    try:
        await asyncio.gather(*(picker.start() for picker in running.values()))
        await envoy.start()
        yield made
        if stays:
            await made.settled()
    finally:
        await envoy.stop()
        await asyncio.gather(*(picker.stop() for picker in running.values()))
        await asyncio.gather(*(backend.stop() for backend in backends))
