"""Who belongs to a pool: joins what the sources say and applies the difference to the pool.

Sources are the config's static list, a watched file, DNS, Kubernetes and the admin interface; each
may change its list at any time. A replica that no source names any more is drained first and
removed when its last request is done or `drain_s` is over. One that its source holds (a pod that
is not ready for now) is drained and stays. Sans-I/O: `tick(now)` finishes drains.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from warmlane.router.config_load import normal_spec
from warmlane.router.errors import ConfigError
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica
from warmlane.router.types import ReplicaSpec, ReplicaState

log = logging.getLogger("warmlane.feeds")

ADMIN = "admin"
# Labels that say which engine it is: a pod's uid (addresses are used again) and where it is read.
_IDENTITY = ("uid", "metrics_port")


class Membership:
    """The wanted replicas of one pool, by source, and those that are leaving."""

    def __init__(self, pool: Pool, metrics: Metrics, *, drain_s: float) -> None:
        self.pool = pool
        self.metrics = metrics
        self.drain_s = drain_s
        self.leaving: dict[str, float] = {}  # name -> time at which the drain is cut
        self._sources: dict[str, dict[str, ReplicaSpec]] = {}
        self._banned: set[str] = set()  # removed by an operator although a source names it
        self._trouble: dict[str, str] = {}
        self._holds: dict[str, frozenset[str]] = {}  # source -> endpoint URLs that it holds
        self._held: set[str] = set()  # names drained for that, not by an operator
        self._ranks: dict[str, int] = {}  # URL -> data-parallel ranks that the engine told of

    def update(
        self,
        source: str,
        specs: Sequence[ReplicaSpec],
        now: float,
        held: frozenset[str] = frozenset(),
    ) -> None:
        """The whole present list of one source. held: URLs in it that get no new request now."""
        wanted = {spec.name: spec for spec in map(normal_spec, specs)}
        if self._sources.get(source) == wanted and self._holds.get(source, frozenset()) == held:
            return
        self._sources[source] = wanted
        self._holds[source] = held
        # A replica that left its source may come back with it.
        self._banned &= self._named().keys()
        self._reconcile(now)

    def forget_source(self, source: str, now: float) -> None:
        """The source is configured no more."""
        self._holds.pop(source, None)
        if self._sources.pop(source, None):
            self._reconcile(now)

    def forget_all(self, now: float) -> None:
        """Nobody names a replica any more: the pool is gone."""
        self._sources.clear()
        self._reconcile(now)

    def add(self, spec: ReplicaSpec, now: float) -> Replica:
        """Add by an operator. ConfigError: bad spec, taken name, full pool."""
        spec = normal_spec(spec)
        slot = self.pool.add(spec, now)
        self._banned.discard(spec.name)
        self._stay(spec.name)
        self._sources.setdefault(ADMIN, {})[spec.name] = spec
        replica = self.pool.replicas[slot]
        assert replica is not None
        return replica

    def split(self, url: str, ranks: int, now: float) -> None:
        """The engine there has so many data-parallel ranks: each is a replica of its own.

        Where the sources name ranks themselves nothing changes.
        """
        if self._ranks.get(url, 1) == ranks:
            return
        log.info("event=ranks pool=%s url=%s ranks=%d", self.pool.name, url, ranks)
        if ranks > 1:
            self._ranks[url] = ranks
        else:
            del self._ranks[url]
        self._reconcile(now)

    def remove(self, name: str, now: float, *, at_once: bool = False) -> bool:
        """Remove by an operator, after its drain unless at_once. False: no such replica."""
        if self.pool.by_name(name) is None:
            return False
        self._sources.get(ADMIN, {}).pop(name, None)
        self._banned.add(name)
        if at_once:
            self._remove(name, now, "cut")
        else:
            self._leave(name, now)
        return True

    def tick(self, now: float) -> None:
        """Remove the leaving ones that are done, and retry what could not be added before."""
        if not self.leaving and not self._trouble:
            return
        requests = self.pool.ledger.requests
        for name, deadline in list(self.leaving.items()):
            replica = self.pool.by_name(name)
            if replica is None:
                del self.leaving[name]
            elif requests[replica.slot] == 0:
                self._remove(name, now, "drained")
            elif now >= deadline:
                self._remove(name, now, "cut")
        self._reconcile(now)

    def _wanted(self) -> dict[str, ReplicaSpec]:
        named = self._named()
        for url in self._ranks.keys() - {spec.url for spec in named.values()}:
            del self._ranks[url]
        return {name: spec for name, spec in named.items() if name not in self._banned}

    def _named(self) -> dict[str, ReplicaSpec]:
        # Of one name in two sources the later source wins; they normally agree.
        merged: dict[str, ReplicaSpec] = {}
        for specs in self._sources.values():
            merged.update(specs)
        if not self._ranks:
            return merged
        apart: dict[str, ReplicaSpec] = {}
        for name, spec in merged.items():
            if spec.rank is not None or spec.url not in self._ranks:
                apart[name] = spec
                continue
            for rank in range(self._ranks[spec.url]):
                each = f"{name}#{rank}"
                apart[each] = msgspec.structs.replace(spec, name=each, rank=rank)
        return apart

    def _reconcile(self, now: float) -> None:
        wanted = self._wanted()
        for replica in list(self.pool):
            spec = wanted.get(replica.name)
            if spec is None or not _same(spec, replica.spec):
                # A changed spec is a new replica under the old name: it waits for the old one.
                self._leave(replica.name, now)
            else:
                self.pool.relabel(spec)
                self._stay(replica.name)
        for name, spec in wanted.items():
            if self.pool.by_name(name) is not None:
                continue
            try:
                self.pool.add(spec, now)
            except ConfigError as error:
                self._say(name, str(error))
            else:
                self._trouble.pop(name, None)
                log.info("event=replica_added pool=%s replica=%s", self.pool.name, name)
        for name in [name for name in self._trouble if name not in wanted]:
            del self._trouble[name]
        self._hold(wanted)

    def _hold(self, wanted: dict[str, ReplicaSpec]) -> None:
        urls = frozenset[str]().union(*self._holds.values())
        held = {name for name, spec in wanted.items() if spec.url in urls} - self.leaving.keys()
        for name in held - self._held:
            replica = self.pool.by_name(name)
            if replica is not None and replica.state is not ReplicaState.DRAINING:
                self._held.add(name)
                self.pool.drain(name, "its source says not ready")
        for name in self._held - held:
            self._held.discard(name)
            if name not in self.leaving:
                self.pool.undrain(name)

    def _leave(self, name: str, now: float) -> None:
        if name in self.leaving:
            return
        self.leaving[name] = now + self.drain_s
        self.pool.drain(name)
        log.info("event=replica_leaving pool=%s replica=%s", self.pool.name, name)

    def _stay(self, name: str) -> None:
        # Only a drain that began here ends here: an operator's own drain stays.
        if self.leaving.pop(name, None) is not None:
            self.pool.undrain(name)
            log.info("event=replica_stays pool=%s replica=%s", self.pool.name, name)

    def _remove(self, name: str, now: float, how: str) -> None:
        self.leaving.pop(name, None)
        replica = self.pool.by_name(name)
        if replica is not None and self.pool.remove(name, now):
            self.metrics.forget(self.pool.name, name, replica.spec.zone)
            log.info("event=replica_removed pool=%s replica=%s how=%s", self.pool.name, name, how)

    def _say(self, name: str, why: str) -> None:
        if self._trouble.get(name) != why:
            self._trouble[name] = why
            self.metrics.limit_reached("replicas")
            log.error(
                'event=replica_refused pool=%s replica=%s why="%s"', self.pool.name, name, why
            )


def _same(new: ReplicaSpec, old: ReplicaSpec) -> bool:
    """The same engine, though its labels may differ? A zone may become known, not change."""
    identity = {name: new.labels.get(name) for name in _IDENTITY}
    zone = new.zone if not old.zone else old.zone
    return (
        msgspec.structs.replace(old, labels=new.labels, zone=zone) == new
        and {name: old.labels.get(name) for name in _IDENTITY} == identity
    )


def state_counts(pool: Pool) -> dict[str, int]:
    """Members of a pool by state name."""
    counts = {state.name.lower(): 0 for state in ReplicaState if state is not ReplicaState.GONE}
    for replica in pool:
        counts[replica.state.name.lower()] += 1
    return counts


def spec_dict(spec: ReplicaSpec) -> dict[str, object]:
    """A spec as plain data, without its defaults."""
    plain: dict[str, object] = msgspec.to_builtins(spec)
    return {key: value for key, value in plain.items() if value not in ("", None, {})}
