"""All feeds of one router: starts and stops discovery, scrapes and probes as replicas come and go.

Owns every task of the network-in side and the HTTP session. A feed that dies of a bug is reported
and started again: advice may fail, the router goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import aiohttp

from warmlane.router.catalog import Catalog
from warmlane.router.config import Config, PoolConfig
from warmlane.router.errors import ConfigError
from warmlane.router.exact import ExactView
from warmlane.router.feeds.adapters import AdapterFeed
from warmlane.router.feeds.client import engine_headers, open_session
from warmlane.router.feeds.discovery import Watch, sources
from warmlane.router.feeds.kube import KIND, KubeFeed, accesses
from warmlane.router.feeds.kube_access import Access, open_access
from warmlane.router.feeds.kube_lease import Lease
from warmlane.router.feeds.kv_events import EventFeeds, Hub, Split
from warmlane.router.feeds.membership import Membership
from warmlane.router.feeds.probe import Prober
from warmlane.router.feeds.scrape import Pace, Scraper
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica
from warmlane.router.rewrites import Rewrite
from warmlane.router.types import ReplicaSpec

if TYPE_CHECKING:
    from warmlane.router.feeds.tokens import TokenFeed

log = logging.getLogger("warmlane.feeds")

_RESTART_S = 1.0
_TICK_S = 0.1

Job = Callable[[], Coroutine[Any, Any, None]]


class Feeds:
    """start() once inside the loop that owns the pools; close() ends every task."""

    def __init__(
        self,
        pools: dict[str, Pool],
        config: Config,
        metrics: Metrics,
        clock: Callable[[], float],
        catalog: Catalog | None = None,
        exact: Callable[[Pool], ExactView | None] = lambda _: None,
    ) -> None:
        self.pools = pools
        self.metrics = metrics
        self.clock = clock
        self.membership = {
            name: Membership(pool, metrics, drain_s=config.timeouts.drain_s)
            for name, pool in pools.items()
        }
        self.probers: dict[tuple[str, str], Prober] = {}
        self.scrapers: dict[tuple[str, str], Scraper] = {}
        self._config = config
        self.catalog = catalog
        self._headers: dict[str, dict[str, str]] = {}
        self._accesses: dict[str, Access] = {}
        self._kube: dict[str, KubeFeed] = {}
        self._pace = Pace()
        self._session: aiohttp.ClientSession | None = None
        self.events = EventFeeds(exact, metrics, Hub(clock))
        self.adapters = AdapterFeed(metrics, clock)
        self.tokens: TokenFeed | None = None  # where a pool names a tokenizer
        self._tasks: dict[tuple[str, str], list[asyncio.Task[None]]] = {}
        self._watches: dict[str, list[asyncio.Task[None]]] = {}
        self._leaving: list[Membership] = []  # of pools that a reload took away
        self._ticker: asyncio.Task[None] | None = None
        self._elector: asyncio.Task[None] | None = None
        self.lease: Lease | None = None  # None: no election, this picker always decides

    @property
    def leading(self) -> bool:
        """False while another picker holds the Lease."""
        return self.lease is None or self.lease.leading

    @property
    def synced(self) -> bool:
        """False while a pool is empty because Kubernetes has not told of it yet."""
        return all(feed.told or any(self.pools[name]) for name, feed in self._kube.items())

    async def start(self) -> None:
        """ConfigError when an engine key or an access to Kubernetes is configured but not there."""
        self._headers = engine_keys(self._config)
        self._accesses = accesses(self._config)
        self._session = open_session(self._config.timeouts.upstream_keepalive_s)
        if any(pool.tokenizer != "off" for pool in self._config.pools):
            self.tokens = _tokens()(
                self.pools, self._config, self.metrics, self._session, self._headers
            )
        self.adapters.session, self.adapters.headers = self._session, self._headers
        for pool in self.pools.values():
            pool.on_change(partial(self._on_change, pool))
            self.adapters.watch(pool)
            for replica in pool:
                self._begin(pool, replica)
        for pool_config in self._config.pools:
            self._follow(pool_config)
        self._ticker = self._spawn("membership", self._tick)
        leader = self._config.leader
        if leader.lease:
            access = open_access(leader.kubeconfig, leader.context, "leader")
            self.lease = Lease(leader, access, self.metrics, self.clock)
            self._elector = self._spawn("leader election", self.lease.run)

    async def close(self) -> None:
        """Cancel every task and close the session; may be called twice."""
        tasks = [task for group in self._tasks.values() for task in group]
        tasks += [task for group in self._watches.values() for task in group]
        tasks += [task for task in (self._ticker, self._elector) if task is not None]
        self._tasks.clear()
        self._watches.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.events.close()
        await self.adapters.close()
        if self.tokens is not None:
            self.tokens.close()
        if self.lease is not None:
            await self.lease.release()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def reload(
        self,
        config: Config,
        headers: dict[str, dict[str, str]] | None = None,
        found: dict[str, Access] | None = None,
    ) -> None:
        """Follow a config that the router has taken: pools, keys, replicas, discovery, intervals.

        headers, found: what `engine_keys` and `kube.accesses` of that config said, read here if not
        given. ConfigError: they cannot be read; nothing changed.
        """
        headers = engine_keys(config) if headers is None else headers
        self._accesses = accesses(config) if found is None else found
        before = {pool.name: self._settings(pool) for pool in self._config.pools}
        self._config, self._headers = config, headers
        self.adapters.headers = headers
        if self.tokens is not None:
            self.tokens.headers = headers
        for name in self._watches:
            for task in self._watches[name]:
                task.cancel()
        self._watches.clear()
        self._kube.clear()
        for name, membership in list(self.membership.items()):
            membership.drain_s = config.timeouts.drain_s
            if self.pools.get(name) is not membership.pool:
                self._abandon(name)
        for pool_config in config.pools:
            pool = self.pools[pool_config.name]
            if pool.name not in self.membership:
                drain_s = config.timeouts.drain_s
                self.membership[pool.name] = Membership(pool, self.metrics, drain_s=drain_s)
                pool.on_change(partial(self._on_change, pool))
                self.adapters.watch(pool)
                restart = True
            else:
                restart = before[pool.name] != self._settings(pool_config)
            self._follow(pool_config)
            for replica in pool if restart else ():
                self._restart(pool, replica)

    def _settings(self, pool: PoolConfig) -> tuple[object, ...]:
        """What probes and scrapes of a pool depend on."""
        headers = self._headers.get(pool.name)
        return self._config.probe, self._config.scrape, pool.engine, headers

    def _abandon(self, name: str) -> None:
        """A pool that is gone: its replicas leave as their requests end."""
        membership = self.membership.pop(name)
        for replica in membership.pool:
            self._end(membership.pool, replica)
        membership.forget_all(self.clock())
        self._leaving.append(membership)

    def _restart(self, pool: Pool, replica: Replica) -> None:
        """Probe and scrape anew. What the old probe took out, the new one brings back."""
        before = self.probers.get((pool.name, replica.name))
        self._end(pool, replica)
        self._begin(pool, replica)
        after = self.probers.get((pool.name, replica.name))
        if before is not None and after is not None:
            after.ejected = before.ejected

    def _follow(self, config: PoolConfig) -> None:
        """Deliver the static list and watch the discovery sources of one pool."""
        membership = self.membership[config.name]
        deliver = partial(self._deliver, membership)
        deliver("static", config.replicas)
        found = sources(config.discovery)
        kinds = {source.kind for source in found}
        kinds |= {KIND} if config.discovery.kubernetes is not None else set()
        for kind in {"file", "dns", "srv", KIND} - kinds:
            membership.forget_source(kind, self.clock())
        interval_s = config.discovery.interval_s
        self._watches[config.name] = [
            self._spawn(
                f"discovery {config.name} {source.kind}",
                Watch(config.name, source, interval_s, self.metrics, deliver).run,
            )
            for source in found
        ]
        kubernetes = config.discovery.kubernetes
        receiver = _Receiver(self, membership)
        if kubernetes is None:
            receiver.rewrites(())
            receiver.objectives({})
        else:
            access = self._accesses[config.name]
            feed = KubeFeed(config.name, kubernetes, access, self.metrics, receiver)
            self._kube[config.name] = feed
            task = self._spawn(f"discovery {config.name} {KIND}", feed.run)
            self._watches[config.name].append(task)

    def _deliver(self, membership: Membership, kind: str, specs: Sequence[ReplicaSpec]) -> None:
        membership.update(kind, specs, self.clock())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for membership in [*self.membership.values(), *self._leaving]:
                membership.tick(self.clock())
            self._leaving = [each for each in self._leaving if each.leaving]

    def _on_change(self, pool: Pool, event: str, replica: Replica) -> None:
        if event == "added":
            self._begin(pool, replica)
        elif event == "removed":
            self.events.end(replica)
        if event == "removed" and self.pools.get(pool.name) is pool:
            self._end(pool, replica)
        elif event == "state":
            log.info(
                'event=state pool=%s replica=%s state=%s why="%s"',
                pool.name,
                replica.name,
                replica.state.name.lower(),
                replica.reason,
            )

    def failing(self, pool: str, replica: str) -> None:
        """A request failed there: its probe has a look now."""
        prober = self.probers.get((pool, replica))
        if prober is not None:
            prober.hurry()

    def _begin(self, pool: Pool, replica: Replica) -> None:
        session = self._session
        if session is None:  # closing
            return
        key = (pool.name, replica.name)
        headers = self._headers.get(pool.name, {})
        prober = self.probers[key] = Prober(
            pool, replica, session, self._config.probe, headers=headers, metrics=self.metrics
        )
        scraper = self.scrapers[key] = Scraper(
            pool,
            replica,
            session,
            self._config.scrape,
            headers=headers,
            metrics=self.metrics,
            pace=self._pace,
            clock=self.clock,
        )
        self._tasks[key] = [
            self._spawn(f"probe {replica.name}", prober.run),
            self._spawn(f"scrape {replica.name}", scraper.run),
        ]
        if self.tokens is not None and pool.name in self.tokens.models:
            prove = partial(self.tokens.prove, pool, replica)
            self._tasks[key].append(self._spawn(f"tokens {replica.name}", prove))
        self.events.begin(pool, replica, session, headers, self._spawn, self._split_of(pool.name))

    def _split_of(self, name: str) -> Split:
        def split(url: str, ranks: int) -> None:
            self.membership[name].split(url, ranks, self.clock())

        return split

    def _end(self, pool: Pool, replica: Replica) -> None:
        key = (pool.name, replica.name)
        self.probers.pop(key, None)
        self.scrapers.pop(key, None)
        for task in self._tasks.pop(key, []):
            task.cancel()

    def _spawn(self, name: str, job: Job) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(_forever(name, job), name=name)


def _tokens() -> type[TokenFeed]:
    """The feed of token ids; its packages are optional. ConfigError: they are not installed."""
    try:
        found: type[TokenFeed] = import_module("warmlane.router.feeds.tokens").TokenFeed
    except ImportError as error:
        raise ConfigError(
            f"pools: tokenizer: needs packages that are not installed ({error.name}): "
            f"pip install 'warmlane[exact]'"
        ) from error
    return found


class _Receiver:
    """Hands on what Kubernetes tells of one pool."""

    def __init__(self, feeds: Feeds, membership: Membership) -> None:
        self._feeds = feeds
        self._membership = membership

    def replicas(self, specs: Sequence[ReplicaSpec], held: frozenset[str]) -> None:
        self._membership.update(KIND, specs, self._feeds.clock(), held)

    def rewrites(self, found: Sequence[Rewrite]) -> None:
        if self._feeds.catalog is not None:
            self._feeds.catalog.set_rewrites(self._membership.pool.name, found)

    def objectives(self, found: Mapping[str, int]) -> None:
        if self._feeds.catalog is not None:
            self._feeds.catalog.set_objectives(self._membership.pool.name, found)


async def _forever(name: str, job: Job) -> None:
    """Run a feed; one that ends by a bug is logged with its trace and started again."""
    while True:
        try:
            await job()
        except Exception:
            log.exception('event=feed_bug feed="%s"', name)
        await asyncio.sleep(_RESTART_S)


def engine_keys(config: Config) -> dict[str, dict[str, str]]:
    """Headers for probes and scrapes, by pool. ConfigError: a key that cannot be read."""
    return {
        pool.name: engine_headers(
            pool.engine_api_key_file, pool.engine_api_key_env, f"pools[{pool.name}]"
        )
        for pool in config.pools
    }
