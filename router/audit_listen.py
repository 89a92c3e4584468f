"""Hears a fleet for `warmlane audit`: events by the router's own intake, counters by its scrapes.

Floor 6. Owns what is counted at the moment a block is stored: whether another replica held it just
then. Read-only: it subscribes, asks for replays and reads metrics; no request is ever sent. Cost:
events are applied one at a time, about 3 us each more than in the router.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Final

import aiohttp
import msgspec

from warmlane._core.kv_events import MORE
from warmlane.router.audit_sums import grown
from warmlane.router.config import PoolConfig
from warmlane.router.exact import ExactView
from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.feeds.dialects import detect, read
from warmlane.router.feeds.kv_events import Hub, KvFeed
from warmlane.router.feeds.prom_text import label, samples
from warmlane.router.feeds.scrape import metrics_origin
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica
from warmlane.router.types import LoadSnapshot, ReplicaSpec, ReplicaState

_METRICS_BYTES: Final = 16 * 1024 * 1024
_SWEEP_US: Final = 1000
_MOST_RANKS: Final = 16  # of one engine: the ranks of a node
_COMPUTED: Final = b"vllm:prompt_tokens_by_source_total"
# Where prefill seconds stand, best first: the name, what is taken off it, and how it is told.
_SECONDS: Final = (
    (b"vllm:request_prefill_time_seconds_sum", b"", "request_prefill_time_seconds"),
    (
        b"vllm:time_to_first_token_seconds_sum",
        b"vllm:request_queue_time_seconds_sum",
        "time_to_first_token_seconds less request_queue_time_seconds",
    ),
    (b"sglang:time_to_first_token_seconds_sum", b"", "time_to_first_token_seconds"),
)


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine has counted since its start. None: it does not tell.

    computed: prompt tokens that no cache held. prefill_s: seconds of prefill, summed over requests;
    seconds_from names the family.
    """

    load: LoadSnapshot
    computed: float | None = None
    prefill_s: float | None = None
    seconds_from: str = ""


class AuditView(ExactView):
    """The exact view, and a tally of stored blocks that another replica held at that moment.

    By slot, blocks: `avoidable` all of them, `sure` those stored while no other replica that held
    anything had requests waiting, `stored` all new ones.
    """

    def __init__(self, pool: Pool, max_replicas: int) -> None:
        super().__init__(pool, max_replicas)
        self.straight = None
        self.counting: set[int] = set()  # slots whose events are of the audit's own time
        self.loaded: set[int] = set()  # slots that had requests waiting when last looked at
        self.avoidable = [0] * max_replicas
        self.sure = [0] * max_replicas
        self.stored = [0] * max_replicas

    def apply(self, slot: int, payload: bytes, budget: int = 0) -> int:
        """As in the router, but one event at a time and always to the end of the batch."""
        del budget
        flags = 0
        while self.tree.maintain(_SWEEP_US):
            pass  # dead blocks would pass for blocks that somebody holds
        while True:
            distinct, own = self.tree.blocks, self.tree.replica_blocks(slot)
            found = super().apply(slot, payload, 1)
            if slot in self.counting:
                fresh = self.tree.replica_blocks(slot) - own
                self._tally(slot, fresh, fresh - (self.tree.blocks - distinct))
            flags |= found & ~MORE
            if not found & MORE:
                return flags

    def _tally(self, slot: int, fresh: int, elsewhere: int) -> None:
        """fresh: blocks new to the replica. elsewhere: those of them that were in the tree."""
        if fresh <= 0:
            return  # a removal, or copies of what it has (another tier)
        elsewhere = min(fresh, max(0, elsewhere))
        self.stored[slot] += fresh
        self.avoidable[slot] += elsewhere
        others = self.loaded - {slot}
        if not any(self.tree.replica_blocks(other) for other in others):
            self.sure[slot] += elsewhere


class Grown(msgspec.Struct, frozen=True):
    """Tokens of one replica between two marks."""

    computed: float
    avoidable: float
    sure: float


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Where one replica stands: its counters, and the view's tally in tokens."""

    joined: bool
    batches: int
    counters: Counters | None
    stored: int
    avoidable: int
    sure: int

    @property
    def told(self) -> bool:
        """Its counters say what it computed."""
        return self.counters is not None and self.counters.computed is not None

    def since(self, old: Mark) -> Grown:
        """Growth. Without counters the stored blocks stand for what was computed."""
        before = None if old.counters is None else old.counters.computed
        after = None if self.counters is None else self.counters.computed
        told = grown(before, after)
        if told is not None and before is not None and not self._restarted(old):
            # Hits are counted at admission and prompts later: the difference may step back.
            told = (after or 0.0) - before
        return Grown(
            float(self.stored - old.stored) if told is None else told,
            float(self.avoidable - old.avoidable),
            float(self.sure - old.sure),
        )

    def _restarted(self, old: Mark) -> bool:
        before = None if old.counters is None else old.counters.load.prefix_queries
        after = None if self.counters is None else self.counters.load.prefix_queries
        return before is None or after is None or after < before

    def prefill_since(self, old: Mark) -> float:
        """Prefill seconds; 0 when they are not told."""
        before = None if old.counters is None else old.counters.prefill_s
        after = None if self.counters is None else self.counters.prefill_s
        return grown(before, after) or 0.0


class Ear:
    """One replica of the audit: its feed, and its counters when last read."""

    def __init__(self, feed: KvFeed, replica: Replica, headers: dict[str, str]) -> None:
        self.feed = feed
        self.replica = replica
        self.headers = headers
        self.counters: Counters | None = None
        self.trouble = ""  # with its metrics

    @property
    def slot(self) -> int:
        return self.replica.slot

    @property
    def hears(self) -> bool:
        """Its stream runs: history that was replayed is behind."""
        source = self.feed.source
        return source is not None and source.stream.live and not source.stream.busy

    @property
    def batches(self) -> int:
        source = self.feed.source
        return 0 if source is None else source.stream.counts["batches"]

    @property
    def why(self) -> str:
        """Why its view is not whole; "" when it is."""
        return self.feed.exact.why(self.slot) or ""


class Listener:
    """Hears all replicas; `await start(join_s)`, `await scrape()`, `await close()`."""

    def __init__(
        self,
        specs: Sequence[tuple[ReplicaSpec, str]],
        session: aiohttp.ClientSession,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        self.session = session
        self.timeout_s = timeout_s
        self.pool = Pool(PoolConfig(kv_events="auto"), initial=ReplicaState.READY)
        self.view = AuditView(self.pool, len(specs) * _MOST_RANKS)
        self.hub = Hub(monotonic)
        self._tasks: list[asyncio.Task[None]] = []
        self.ears = [self._ear(spec, setting, dict(headers)) for spec, setting in specs]

    def _ear(self, spec: ReplicaSpec, setting: str, headers: dict[str, str]) -> Ear:
        spec = msgspec.structs.replace(spec, kv_events=setting)
        replica = self.pool.replicas[self.pool.add(spec, 0.0)]
        assert replica is not None, "added"
        feed = KvFeed(
            self.pool,
            replica,
            self.view,
            self.session,
            self.hub,
            headers=headers,
            metrics=Metrics(),
            split=lambda _, ranks: self._split(ear, ranks),
        )
        ear = Ear(feed, replica, headers)
        return ear

    def _split(self, ear: Ear, ranks: int) -> None:
        """Several data-parallel ranks are behind it: each is heard by itself, and it no more."""
        spec, at = ear.replica.spec, self.ears.index(ear)
        named = [
            msgspec.structs.replace(spec, name=f"{spec.name}#{rank}", rank=rank)
            for rank in range(min(ranks, _MOST_RANKS))
        ]
        apart = [self._ear(each, spec.kv_events, ear.headers) for each in named]
        self.ears[at : at + 1] = apart
        self._tasks += [asyncio.create_task(each.feed.run()) for each in apart]
        task = asyncio.current_task()
        assert task is not None, "told by its feed"
        task.cancel()

    async def start(self, join_s: float) -> None:
        """Subscribe, and wait until every replica is heard, at most `join_s`."""
        self._tasks = [asyncio.create_task(ear.feed.run()) for ear in self.ears]
        end = monotonic() + join_s
        while not all(map(_settled, self.ears)) and monotonic() < end:  # noqa: ASYNC110 - sockets
            await asyncio.sleep(0.05)
        # A subscription without a replay takes a moment to reach its publisher.
        await asyncio.sleep(min(0.3, join_s))

    def join(self) -> None:
        """Count from here on what replicas send that are heard by now."""
        self.view.counting.update(ear.slot for ear in self.ears if ear.hears)

    def marks(self) -> list[Mark]:
        """Where every replica stands now, in the order of the replicas."""
        return [self._mark(ear) for ear in self.ears]

    def _mark(self, ear: Ear) -> Mark:
        view, slot = self.view, ear.slot
        size = view.intake.block_size(slot)
        return Mark(
            joined=slot in view.counting,
            batches=ear.batches,
            counters=ear.counters,
            stored=view.stored[slot] * size,
            avoidable=view.avoidable[slot] * size,
            sure=view.sure[slot] * size,
        )

    def settle(self) -> None:
        """Count no more, and sweep what is dead out of the tree."""
        self.view.counting.clear()
        while self.view.tree.maintain(_SWEEP_US):
            pass

    async def scrape(self) -> None:
        """Read every engine's counters; one that fails keeps the last ones and says why."""
        await asyncio.gather(*map(self._scrape, self.ears))

    async def _scrape(self, ear: Ear) -> None:
        try:
            status, text = await fetch(
                self.session,
                metrics_origin(ear.replica) + "/metrics",
                headers=ear.headers,
                timeout_s=self.timeout_s,
                max_bytes=_METRICS_BYTES,
            )
        except EngineError as error:
            ear.trouble = f"/metrics: {error}"
            return
        found = counters(text, ear.replica.spec.rank) if status == 200 else None
        if found is None:
            ear.trouble = f"/metrics: status {status}, no known engine"
            return
        ear.trouble, ear.counters = "", found
        self.pool.update_load(ear.slot, found.load)
        (self.view.loaded.add if found.load.waiting else self.view.loaded.discard)(ear.slot)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.hub.close()


def _settled(ear: Ear) -> bool:
    return ear.hears or (ear.feed.source is None and ear.why not in ("", "joining"))


def counters(text: bytes, rank: int | None = None) -> Counters | None:
    """Out of one scrape; None: not of an engine that is known."""
    dialect = detect(text)
    reading = None if dialect is None else read(text, dialect, monotonic(), rank)
    if reading is None:
        return None
    load = reading.snapshot
    computed = _sum(text, _COMPUTED, rank, "local_compute")
    if computed is None and load.prefix_queries is not None and load.prefix_hits is not None:
        computed = load.prefix_queries - load.prefix_hits
    for family, queued, name in _SECONDS:
        seconds = _sum(text, family, rank)
        if seconds is not None:
            less = _sum(text, queued, rank) if queued else None
            told = name if less is not None or not queued else name.split(" less ")[0]
            left = max(0.0, seconds - (less or 0.0))
            return Counters(load=load, computed=computed, prefill_s=left, seconds_from=told)
    return Counters(load=load, computed=computed)


def _sum(text: bytes, family: bytes, rank: int | None, source: str = "") -> float | None:
    found = [
        each.value
        for each in samples(text, family)
        if (not source or label(each.labels, b"source") == source)
        and (rank is None or label(each.labels, b"engine") in (None, str(rank)))
    ]
    return sum(found) if found else None
