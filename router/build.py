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
from time import monotonic

import msgspec

from warmlane.router.config import Config
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.feeds import Feeds
from warmlane.router.metrics_export import attach
from warmlane.router.shadow import Shadow
from warmlane.router.types import ReplicaState

log = logging.getLogger("warmlane")

# A slice of maintenance may hold the loop for 1 ms; while work remains a slice comes every 5 ms.
_SLICE_US = 1000
_BUSY_S = 0.005
_IDLE_S = 0.1

# What a reload can change in a running router; anything else needs a restart and is named.
_LIVE = frozenset({"probe", "scrape"})
_LIVE_POOL = frozenset({"replicas", "discovery", "engine_api_key_file", "engine_api_key_env"})
_LIVE_TIMEOUTS = frozenset({"drain_s"})


class Running:
    """A router with its feeds. `draining` is set by the face that is going away."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.router = Router(config, clock=monotonic, joining=True)
        self.metrics = self.router.metrics
        self.feeds = Feeds(self.router.pools, config, self.metrics, monotonic)
        self.draining = False
        self.shadow: Shadow | None = None  # of the face that serves, if it compares decisions
        self._maintenance: asyncio.Task[None] | None = None
        attach(self.metrics, self.router.pools, self._index_stats, monotonic)

    async def start(self) -> None:
        """ConfigError: an engine key that is configured but not there."""
        await self.feeds.start()
        self._maintenance = asyncio.create_task(self._maintain(), name="maintenance")

    async def close(self) -> None:
        """End the feeds and the maintenance; may be called twice."""
        await self.feeds.close()
        task, self._maintenance = self._maintenance, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def why_not_ready(self) -> str:
        """ "" while new requests can be served, else the reason for /readyz."""
        if self.draining:
            return "draining"
        for pool in self.router.pools.values():
            if any(replica.state is ReplicaState.READY for replica in pool):
                return ""
        return "no replica is ready"

    def reload(self, config: Config) -> list[str]:
        """Follow a new config; the paths of changes that need a restart. ConfigError: refused.

        Replicas, discovery, engine keys, probe, scrape and timeouts.drain_s change at once.
        """
        try:
            later = restart_needed(self.config, config)
            live = _only_live(self.config, config)
            self.feeds.reload(live)
        except ConfigError as error:
            self.metrics.reloaded("failed")
            log.error('event=reload result=failed why="%s"', error)
            raise
        self.config = live
        self.metrics.reloaded("ok")
        log.info("event=reload result=ok restart_needed=%s", ",".join(later) or "none")
        return later

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
            except Exception:
                log.exception("event=maintenance_bug")
            began = monotonic()
            await asyncio.sleep(wait_s)
            self.metrics.lag(max(0.0, monotonic() - began - wait_s))


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
    paths = [
        name
        for name in Config.__struct_fields__
        if name not in _LIVE
        and name not in ("pools", "timeouts")
        and getattr(old, name) != getattr(new, name)
    ]
    paths += [f"timeouts.{name}" for name in _changed(old.timeouts, new.timeouts, _LIVE_TIMEOUTS)]
    before = {pool.name: pool for pool in old.pools}
    after = {pool.name: pool for pool in new.pools}
    paths += [f"pools[{name}]" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        changed = _changed(before[name], after[name], _LIVE_POOL)
        paths += [f"pools[{name}].{field}" for field in changed]
    return sorted(paths)


def _changed(old: msgspec.Struct, new: msgspec.Struct, live: frozenset[str]) -> list[str]:
    return [
        field
        for field in old.__struct_fields__
        if field not in live and getattr(old, field) != getattr(new, field)
    ]


def _only_live(old: Config, new: Config) -> Config:
    """`old` with what may change taken from `new`."""
    after = {pool.name: pool for pool in new.pools}
    pools = [
        msgspec.structs.replace(
            pool, **{field: getattr(after[pool.name], field) for field in _LIVE_POOL}
        )
        if pool.name in after
        else pool
        for pool in old.pools
    ]
    timeouts = msgspec.structs.replace(old.timeouts, drain_s=new.timeouts.drain_s)
    return msgspec.structs.replace(
        old, pools=pools, timeouts=timeouts, probe=new.probe, scrape=new.scrape
    )
