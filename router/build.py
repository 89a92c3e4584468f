"""The running router: core, feeds and maintenance joined on one event loop. Floor 6, no face.

`router.serve` puts the proxy and the admin interface on top; a program that embeds the router with
live feeds but brings its own transport uses this alone:

    running = await build(config)
    decision = running.router.decide(request, monotonic(), rand)
    ...
    await running.close()

All times are `time.monotonic`. Router and feeds belong to the loop that called `build`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

import msgspec

from warmlane.router.apart import Apart
from warmlane.router.config import Config, PoolConfig
from warmlane.router.config_load import checked
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError, RouterError
from warmlane.router.exact import ExactView
from warmlane.router.feeds.feeds import Feeds, engine_keys
from warmlane.router.feeds.kube import accesses
from warmlane.router.lane_exact import ExactLane
from warmlane.router.metrics_export import attach
from warmlane.router.pool import Pool
from warmlane.router.record_file import RecordFile
from warmlane.router.shadow import Shadow
from warmlane.router.share import Sharer
from warmlane.router.types import Decision, Outcome, ReplicaState, Request

if TYPE_CHECKING:
    from warmlane.router.feeds.share import ShareFeed

log = logging.getLogger("warmlane")

# A slice of maintenance may hold the loop for 1 ms; while work remains a slice comes every 5 ms.
_SLICE_US = 1000
_BUSY_S = 0.005
_IDLE_S = 0.1

# What a reload cannot change in a running router: sockets, and the sizes of tables and blocks.
# Everything else it can. What is left as it was is named.
_RESTART = (
    *("listen", "admin", "ext_proc", "shadow", "index", "tokens", "leader"),
    *("share", "record"),
)
_RESTART_LIMITS = ("replicas", "tickets", "upstream_idle")
_RESTART_TIMEOUTS = ("upstream_keepalive_s",)
_RESTART_POOL = ("tokenizer", "kv_events")


class Running:
    """A router with its feeds. `draining` is set by the face that is going away."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.router = Router(config, clock=monotonic, joining=True)
        self.metrics = self.router.metrics
        router = self.router
        self.feeds = Feeds(
            router.pools, config, self.metrics, monotonic, router.catalog, self._exact_view
        )
        self.draining = False
        self._stirred = False
        router.wake = self._wake
        self.shadow: Shadow | None = None  # of the face that serves, if it compares decisions
        self.followers: list[Callable[[Config], None]] = []  # faces that want each new config
        self.sharing: ShareFeed | None = None  # with other routers, where that is configured
        self._apart = Apart(self.router)
        self.record: RecordFile | None = None  # log of requests, where that is configured
        self._tasks: list[asyncio.Task[None]] = []
        attach(self.metrics, self.router.pools, self._index_stats, monotonic)

    async def start(self) -> None:
        """ConfigError: an engine key that is configured but not there."""
        await self.feeds.start()
        if self.feeds.tokens is not None:
            self.feeds.tokens.router = self.router
        if self.config.record.file:
            record = RecordFile(self.router, self.config.record, _baseline(self.config))
            record.open()
            self.record = record
        self._tasks.append(asyncio.create_task(self._maintain(), name="maintenance"))
        if self.config.share.url:
            self.sharing = _share_feed(self.router)
            self._tasks.append(asyncio.create_task(_forever(self.sharing), name="share"))

    async def close(self) -> None:
        """End the feeds and the maintenance; may be called twice."""
        await self.feeds.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.sharing is not None:
            await self.sharing.close()
        if self.record is not None:
            self.record.close()

    @property
    def routers_unheard(self) -> int:
        """Routers before these replicas of which this one cannot hear, itself counted in."""
        if self.sharing is None:
            return self.config.share.routers
        return 1 if self.sharing.connected else max(self.config.share.routers, self.sharing.most)

    @property
    def standby(self) -> bool:
        """Alive, but others are to be asked: not the leader, or discovery has not told yet."""
        return not self.feeds.leading or not self.feeds.synced

    def why_not_ready(self) -> str:
        """ "" while new requests can be served, else the reason for /readyz."""
        if self.draining:
            return "draining"
        if not self.feeds.leading:
            return "not the leader"
        for pool in self.router.pools.values():
            if any(replica.state is ReplicaState.READY for replica in pool):
                return ""
        return "no replica is ready"

    def reload(self, config: Config) -> list[str]:
        """Follow a new config; the paths of changes that need a restart. ConfigError: refused.

        All but what `restart_needed` names changes at once, or nothing does.
        """
        try:
            later = restart_needed(self.config, config)
            live = checked(_only_live(self.config, config))
            keys, found = engine_keys(live), accesses(live)
            gone = self.router.reload(live)
        except ConfigError as error:
            self.metrics.reloaded("failed")
            log.error('event=reload result=failed why="%s"', error)
            raise
        self.config = live
        self.feeds.reload(live, keys, found)
        for follow in self.followers:
            follow(live)
        for pool in gone:
            log.info("event=pool_removed pool=%s inflight=%d", pool.name, pool.ledger.open_tickets)
        self.metrics.reloaded("ok")
        log.info("event=reload result=ok restart_needed=%s", ",".join(later) or "none")
        return later

    def _exact_view(self, pool: Pool) -> ExactView | None:
        lane = self.router.lanes.get(pool.name)
        return lane.mixed.exact if isinstance(lane, ExactLane) and lane.pool is pool else None

    async def decide(self, request: Request, rand: int, size: int = 0) -> Decision:
        """`Router.decide` for a program that can wait: past saturation until the request may go.

        Cancelled: it leaves the queue. Raises NoReplica, RequestError.
        """
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

        def told(what: Decision | RouterError) -> None:
            if isinstance(what, Decision):
                answer.set_result(what)
            else:
                answer.set_exception(what)

        found = self.router.ask(request, monotonic(), rand, told, size)
        if isinstance(found, Decision):
            return found
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled():
                found.cancel()
            elif answer.exception() is None:  # it went in the very turn of its cancellation
                outcome = Outcome(status="cancelled")
                self.router.close(answer.result().ticket, outcome, monotonic())
            raise

    def _wake(self) -> None:
        """Requests wait and room may have come up: look at it once, after this turn of the loop."""
        if not self._stirred:
            self._stirred = True
            asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        self._stirred = False
        self.router.release(monotonic())

    def _index_stats(self, pool: str) -> tuple[int, int]:
        view = self.router.lanes[pool].view
        return view.blocks, view.bytes_used

    async def _maintain(self) -> None:
        while True:
            before = monotonic()
            wait_s = _IDLE_S
            try:
                if self.router.maintain(before, _SLICE_US):
                    wait_s = _BUSY_S
                self._apart.tick(self.routers_unheard)
                if self.record is not None:
                    self.record.tick(before)
            except Exception:
                log.exception("event=maintenance_bug")
            began = monotonic()
            await asyncio.sleep(wait_s)
            self.metrics.lag(max(0.0, monotonic() - began - wait_s))


def _baseline(config: Config) -> str | None:
    """None: the pools' policies decide; "": somebody else does, or not always."""
    return None if config.shadow.mode == "active" and config.shadow.share == 1.0 else ""


def _share_feed(router: Router) -> ShareFeed:
    """The exchange with other routers; its package is optional. ConfigError: not installed."""
    try:
        feed = import_module("warmlane.router.feeds.share")
    except ImportError as error:
        raise ConfigError(
            f"share.url: needs a package that is not installed ({error.name}): "
            f"pip install 'warmlane[share]'"
        ) from error
    sharer = Sharer(router, router.config.share, feed.new_name())
    found: ShareFeed = feed.ShareFeed(sharer, monotonic)
    return found


async def _forever(sharing: ShareFeed) -> None:
    """A bug in the exchange costs the exchange for a moment, not the router."""
    while True:
        try:
            await sharing.run()
        except Exception:
            log.exception("event=share_bug")
        await asyncio.sleep(1.0)


async def build(config: Config) -> Running:
    """A started router. ConfigError: a part of the config cannot be built."""
    running = Running(config)
    try:
        await running.start()
    except BaseException:
        await running.close()
        raise
    return running


def restart_needed(old: Config, new: Config) -> list[str]:
    """Dotted paths of the differences that a running router cannot take over."""
    paths = _changed(old, new, _RESTART)
    paths += [f"limits.{name}" for name in _changed(old.limits, new.limits, _RESTART_LIMITS)]
    changed = _changed(old.timeouts, new.timeouts, _RESTART_TIMEOUTS)
    paths += [f"timeouts.{name}" for name in changed]
    before = {pool.name: pool for pool in old.pools}
    for pool in new.pools:
        changed = _changed(before.get(pool.name, PoolConfig()), pool, _RESTART_POOL)
        paths += [f"pools[{pool.name}].{name}" for name in changed]
    return sorted(paths)


def _changed(old: msgspec.Struct, new: msgspec.Struct, fields: tuple[str, ...]) -> list[str]:
    return [field for field in fields if getattr(old, field) != getattr(new, field)]


def _only_live(old: Config, new: Config) -> Config:
    """`new` with what needs a restart taken from `old`."""
    before = {pool.name: pool for pool in old.pools}
    return msgspec.structs.replace(
        _kept(new, old, _RESTART),
        limits=_kept(new.limits, old.limits, _RESTART_LIMITS),
        timeouts=_kept(new.timeouts, old.timeouts, _RESTART_TIMEOUTS),
        pools=[
            _kept(pool, before.get(pool.name, PoolConfig()), _RESTART_POOL) for pool in new.pools
        ],
    )


_Node = TypeVar("_Node", bound=msgspec.Struct)


def _kept(new: _Node, old: _Node, fields: tuple[str, ...]) -> _Node:
    """`new` with these fields of `old`."""
    return msgspec.structs.replace(new, **{field: getattr(old, field) for field in fields})
