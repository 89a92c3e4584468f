"""KV cache events of the engines over ZMQ, into the exact view of their pools.

One source per replica (endpoint and data-parallel rank), told apart by its connection; the topic is
not looked at. Owns where the endpoints are, and who binds: as in vLLM a publisher whose endpoint
names no host binds, any other connects. The sockets are `kv_events_sockets`, healing is
`kv_events_stream`, decoding and applying `_core.kv_events`. Until a source is trusted its replica
keeps the approximate view; each change is one line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from warmlane._core.kv_events import keep_freed_memory
from warmlane.router.config_events import Endpoints, endpoints, is_open, is_polled
from warmlane.router.exact import ExactView
from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.feeds.kv_events_sockets import Pump, Source, Trouble
from warmlane.router.feeds.trtllm_events import PolledSource
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica

Spawn = Callable[[str, Callable[[], Coroutine[Any, Any, None]]], "asyncio.Task[None]"]

TICK_S: Final = 0.5
FIND_S: Final = 5.0  # between two looks for the endpoints
_SOURCES_BYTES: Final = 262_144
_COUNTED: Final = ("stored", "removed", "unknown_removals", "orphans", "refused", "odd", "broken")


# URL, data-parallel ranks that the engine there has.
Split = Callable[[str, int], None]


class Found(msgspec.Struct, frozen=True):
    """Where a replica's events are. bind None: bind if that works, since an engine that names a
    host of this machine either listens there itself or waits for us to listen."""

    where: Endpoints
    bind: bool | None


class SeveralRanks(EngineError):
    """An engine told of `ranks` publishers, and the replica names none of them."""

    def __init__(self, ranks: int) -> None:
        super().__init__(f"{ranks} data-parallel ranks behind it: name each as a replica")
        self.ranks = ranks


class KvFeed:
    """The events of one replica: `run()` until cancelled."""

    def __init__(
        self,
        pool: Pool,
        replica: Replica,
        exact: ExactView,
        session: aiohttp.ClientSession,
        hub: Hub,
        *,
        headers: dict[str, str],
        metrics: Metrics,
        split: Split | None = None,
    ) -> None:
        self.pool = pool
        self.replica = replica
        self._split = split
        self.exact = exact
        self.session = session
        self.hub = hub
        self.headers = headers
        self.metrics = metrics
        self.source: Source | PolledSource | None = None
        self._counted: Counter[str] = Counter()
        self._blocks: dict[str, int] = {}

    async def run(self) -> None:
        setting = self.replica.spec.kv_events or self.pool.config.kv_events
        if setting == "off":
            return await asyncio.sleep(float("inf"))
        slot = self.replica.slot
        self.exact.open(slot)
        due = 0.0
        try:
            while True:
                if self.source is None and self.hub.clock() >= due:
                    due = self.hub.clock() + FIND_S
                    try:
                        self.source = self._opened(await self._find(setting), slot)
                    except EngineError as trouble:
                        self.exact.distrust(slot, str(trouble))
                        if isinstance(trouble, SeveralRanks) and self._split is not None:
                            self._split(self.replica.spec.url, trouble.ranks)
                elif self.source is not None:
                    self.source.tick()
                self._count()
                await asyncio.sleep(TICK_S)
        finally:
            if self.source is not None:
                self.hub.close_source(self.source)
                self.source = None
            if self.exact.why(slot) is not None and self.replica is self.pool.replicas[slot]:
                self.exact.clear_view(slot)
                self.exact.distrust(slot, "its events are not heard")

    def _opened(self, found: Found, slot: int) -> Source | PolledSource:
        """Raises EngineError: its endpoint cannot be used."""
        if not is_polled(found.where.events):
            return self.hub.open(found, self.exact, slot)
        load = self.replica.load
        return PolledSource(
            found.where,
            exact=self.exact,
            slot=slot,
            rank=self.replica.spec.rank or 0,
            block_size=0 if load is None else load.block_size or 0,
            session=self.session,
            headers=self.headers,
            clock=self.hub.clock,
        )

    async def _find(self, setting: str) -> Found:
        """Raises EngineError: none are to be had."""
        spec = self.replica.spec
        if setting != "auto":
            where = endpoints(setting, spec)
            if is_polled(where.events):
                return Found(where, False)
            return Found(where, is_open(where.events) and not where.events.startswith("ipc:"))
        status, body = await fetch(
            self.session,
            f"{spec.url}/kv_event_sources",
            headers=self.headers,
            timeout_s=FIND_S,
            max_bytes=_SOURCES_BYTES,
        )
        if status != 200:
            raise Trouble(f"/kv_event_sources: status {status}: name its endpoints in kv_events")
        found = found_in(body, spec.rank, spec.url)
        return found if found.bind is not None else await _settled(found)

    def _count(self) -> None:
        """The counts."""
        pool, name = self.pool.name, self.replica.name
        if self.source is None:
            return
        counts = self.source.stream.counts
        for kind, number in counts.items():
            new = number - self._counted[kind]
            if new and kind == "batches":
                self.metrics.count("warmlane_kv_event_batches_total", pool, name, n=new)
            elif new:
                self.metrics.count("warmlane_kv_event_troubles_total", pool, name, kind, n=new)
        self._counted = Counter(counts)
        stats = self.exact.intake.stats(self.replica.slot)
        for what in _COUNTED:
            new = stats[what] - self._blocks.get(what, 0)
            if new > 0:
                self.metrics.count("warmlane_kv_event_blocks_total", pool, name, what, n=new)
        self._blocks = stats


class Hub:
    """What all event sources of a router share: the pump, and each endpoint once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.sources: list[Source] = []
        self._pump: Pump | None = None

    def open(self, found: Found, exact: ExactView, slot: int) -> Source:
        """Raises EngineError: its endpoint cannot be used."""
        if self._pump is None:
            keep_freed_memory()
            self._pump = Pump(asyncio.get_running_loop())
        if any(each.where.events == found.where.events for each in self.sources):
            raise Trouble(f"{found.where.events}: another replica has this endpoint, too")
        source = Source(
            found.where,
            bind=found.bind,
            exact=exact,
            slot=slot,
            pump=self._pump,
            clock=self.clock,
        )
        self.sources.append(source)
        return source

    def close_source(self, source: Source | PolledSource) -> None:
        if isinstance(source, Source):
            self.sources.remove(source)
        source.close()

    def close(self) -> None:
        """After every feed ended: what a cancelled one left open."""
        for source in list(self.sources):
            self.close_source(source)


def found_in(body: bytes, rank: int | None, url: str) -> Found:
    """The endpoints of an answer to /kv_event_sources: {rank: the publisher's config}.

    Raises EngineError: the engine publishes none, or several ranks hide behind one replica.
    """
    try:
        sources: Any = msgspec.json.decode(body)
        if sources == {}:  # vLLM 0.32 without --kv-events-config
            raise Trouble("events are off in the engine (--kv-events-config)")
        config: Any = sources[str(rank or 0)]
        events, replay = str(config["endpoint"]), str(config.get("replay_endpoint") or "")
        enabled = bool(config["enable_kv_cache_events"]) and config.get("publisher") == "zmq"
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as error:
        raise Trouble(f"/kv_event_sources: not understood ({type(error).__name__})") from error
    if not enabled:
        raise Trouble("events are off in the engine (--kv-events-config)")
    if rank is None and len(sources) > 1:
        raise SeveralRanks(len(sources))
    opened = is_open(events)
    host = urlsplit(url).hostname or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    where = Endpoints(reachable(events, host), reachable(replay, host))
    return Found(where, False if opened else None)


async def _settled(found: Found) -> Found:
    """Whether the host that an engine names is this machine: then by its address, to be bound."""
    parts = urlsplit(found.where.events)
    try:
        addresses = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname, parts.port, type=socket.SOCK_DGRAM
        )
    except OSError:
        addresses = []
    for family, _, _, _, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address[0], 0))  # only an address of this machine can be had
            host = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
            where = Endpoints(f"tcp://{host}:{parts.port}", found.where.replay)
            return Found(where, None)
    return Found(found.where, False)


def reachable(endpoint: str, host: str) -> str:
    """A wildcard endpoint as it is reached from elsewhere."""
    if not endpoint.startswith("tcp://") or not is_open(endpoint):
        return endpoint
    named, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return f"tcp://{host}:{port}" if named in ("*", "[::]", "::") else endpoint


class EventFeeds:
    """The event feeds of a router's replicas, from their joining to their removal.

    exact: a pool's view by events, None for one without.
    """

    def __init__(
        self, exact: Callable[[Pool], ExactView | None], metrics: Metrics, hub: Hub
    ) -> None:
        self._exact = exact
        self._metrics = metrics
        self._hub = hub
        self._tasks: dict[Replica, asyncio.Task[None]] = {}

    def begin(
        self,
        pool: Pool,
        replica: Replica,
        session: aiohttp.ClientSession,
        headers: dict[str, str],
        spawn: Spawn,
        split: Split | None = None,
    ) -> None:
        """Hear its events; nothing happens where that is so already.

        split: told when several data-parallel ranks turn out to be behind the replica.
        """
        exact = self._exact(pool)
        if exact is None or replica in self._tasks:
            return
        feed = KvFeed(
            pool,
            replica,
            exact,
            session,
            self._hub,
            headers=headers,
            metrics=self._metrics,
            split=split,
        )
        self._tasks[replica] = spawn(f"events {replica.name}", feed.run)

    def end(self, replica: Replica) -> None:
        """It was removed."""
        task = self._tasks.pop(replica, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """End every feed; may be called twice."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._hub.close()
