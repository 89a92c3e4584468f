"""What all requests of one proxy share: the router, the links to replicas, health and limits.

One object, owned by the proxy's event loop. `now` is a coarse clock (one tick behind at most):
good enough for time-outs of seconds, and free.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from warmlane._core.desk import Lead
from warmlane._core.hop import Shared
from warmlane._core.straight import Straight
from warmlane.router.attempts import COUNTED, Fault, RetryBudget
from warmlane.router.config import Config
from warmlane.router.core import Router
from warmlane.router.errors import RequestError
from warmlane.router.health import Ejector
from warmlane.router.interfaces import TokenSource
from warmlane.router.pool import Pool, Replica
from warmlane.router.proxy.access import Keys
from warmlane.router.proxy.exchange import Exchange
from warmlane.router.proxy.links import Link, Links
from warmlane.router.proxy.tracked import Tracked
from warmlane.router.requests import KINDS, SCAN_KIND, TransferParams
from warmlane.router.shadow import Shadow
from warmlane.router.types import ReplicaState

if TYPE_CHECKING:
    from warmlane.router.feeds.adapters import AdapterFeed
    from warmlane.router.proxy.delivery import Client as Asker

log = logging.getLogger("warmlane.proxy")

PASSIVE: Final = "failing requests"
_MEMBERS: Final = (ReplicaState.READY, ReplicaState.EJECTED, ReplicaState.JOINING)


class Client(Protocol):
    """What the tick and the server want of a client connection."""

    transport: asyncio.Transport

    def due(self) -> float: ...
    def expired(self, now: float) -> None: ...
    def finish(self) -> None: ...


class PoolSide:
    """A pool as the proxy sees it: with its retry budget and passive ejection."""

    def __init__(self, pool: Pool, state: State, now: float) -> None:
        self.pool = pool
        self.name = pool.name
        self.budget = RetryBudget(state.config.retry, now)
        self.ejector = Ejector(state.config.ejection, now)
        self._state = state
        pool.on_change(self._changed)

    def fault(self, slot: int, fault: Fault) -> None:
        """An attempt on `slot` failed; may eject the replica."""
        replica = self.pool.replicas[slot]
        if fault not in COUNTED or replica is None:
            return
        if fault is Fault.RESET:
            self.budget.broke(slot, self.pool.ledger.requests[slot], monotonic())
        members = sum(member.state in _MEMBERS for member in self.pool)
        seconds = self.ejector.fault(slot, monotonic(), random.random(), members)
        if seconds > 0.0:
            log.warning(
                "ejected pool=%s replica=%s fault=%s seconds=%.1f",
                self.name,
                replica.name,
                fault,
                seconds,
            )
            self._state.router.metrics.ejection(self.name, replica.name, fault)
            self.pool.set_state(slot, ReplicaState.EJECTED, PASSIVE)

    def zone_of(self, slot: int) -> str:
        """Where a replica stands, "" unknown."""
        replica = self.pool.replicas[slot]
        return "" if replica is None else replica.spec.zone

    def follow(self, config: Config) -> None:
        self.budget.follow(config.retry)
        self.ejector.follow(config.ejection)

    def tick(self, now: float) -> None:
        self.budget.roll(now)
        for slot in self.ejector.due(now):
            replica = self.pool.replicas[slot]
            if replica is not None and replica.reason == PASSIVE:
                self.pool.set_state(slot, ReplicaState.READY, "back on trial")
                log.info("returned pool=%s replica=%s", self.name, replica.name)

    def link_of(self, slot: int) -> Link:
        """The link to a member."""
        replica = self.pool.replicas[slot]
        assert replica is not None, "a decision names members only"
        return self._state.links.of(replica)

    def _changed(self, event: str, replica: Replica) -> None:
        if event == "removed":
            self.ejector.forget(replica.slot)


class State(Shared):
    """See the module."""

    shadow: Shadow | None  # set by the command: decisions beside a baseline's

    def __init__(self, router: Router, config: Config, keys: Keys, debug_keys: Keys) -> None:
        now = monotonic()
        self._settle_plain(config)
        self.tokens: TokenSource | None = None  # set by the command, where a pool is exact
        self.adapters: AdapterFeed | None = None  # set by the command
        self.router = router
        self.metrics = router.metrics
        self.config = config
        self.limits = config.limits
        self.timeouts = config.timeouts
        self.transfer_params: TransferParams = config.transfer_params
        self.debug_headers = config.debug_headers
        self.admission = config.admission if config.admission.enabled else None
        self.keys = keys
        self.guarded = bool(keys)  # by configuration, whatever is in the file
        self.debug_keys = debug_keys
        self.now = now
        if self.guarded:
            self.guard = self._may_pass
        self.clients: Tracked[Client] = Tracked()
        self.rand = random.Random().getrandbits
        self.tls_client: ssl.SSLContext | None = None
        self.links = Links(
            keepalive_s=self.timeouts.upstream_keepalive_s,
            max_idle=self.limits.upstream_idle,
            tls=self._client_tls,
        )
        self.sides: dict[str, PoolSide] = {}
        for pool in router.pools.values():
            self.side(pool.name)
        router.catalog.on_change(self.forget_leads)

    def follow(self, config: Config) -> None:
        """A reload: pools may have come and gone. Requests under way keep what they began with."""
        self._settle_plain(config)
        self.forget_leads()
        self.config = config
        self.limits = config.limits
        self.timeouts = config.timeouts
        self.transfer_params = config.transfer_params
        self.debug_headers = config.debug_headers
        self.admission = config.admission if config.admission.enabled else None
        pools = self.router.pools
        self.sides = {
            name: side for name, side in self.sides.items() if pools.get(name) is side.pool
        }
        for name in pools:
            self.side(name).follow(config)
            self._watch(name)  # the reload may have made it

    def _settle_plain(self, config: Config) -> None:
        """What the compiled half has to know of the config."""
        limits, timeouts = config.limits, config.timeouts
        self.plain = not config.debug_headers
        self.paths = {path: SCAN_KIND[kind] for path, kind in KINDS.items()}
        self.most_inflight = limits.inflight
        self.most_buffered = limits.buffered_bytes
        self.most_head = limits.head_bytes
        self.most_body = limits.body_bytes
        self.most_text = limits.answer_text_bytes
        self.most_held = limits.hold_bytes
        self.hold_s = limits.hold_s
        self.head_s = timeouts.head_s
        self.keepalive_s = timeouts.client_keepalive_s
        self.first_byte_s = timeouts.first_byte_s
        self.idle_s = timeouts.idle_s
        self.total_s = timeouts.total_s
        self.sow(random.getrandbits(64))

    def _may_pass(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a plain request may use the listener; who may not is told in Python."""
        try:
            self.keys.check(headers)
        except RequestError:
            return False
        return True

    def lead(self, name: bytes) -> Lead | None:
        """Where a model name leads without a look at the request; see `Shared.lead_of`."""
        found = self.router.fixed_target(name)
        if found is None:
            return None
        model, target = found
        side = self.side(target.pool)
        return self.router.lanes[target.pool].lead(model, target, side, side.link_of)

    def adopt(self, course: Straight) -> Exchange:
        """The exchange that goes on with a course, in its client's hands."""
        client = cast("Asker", course.front)
        shared = cast("Any", self)  # pyright knows this module by two names
        exchange = Exchange(shared, client, course.head, course.body, b"")
        exchange.take_over(course)
        course.front.exchange = exchange
        return exchange

    def side(self, pool: str) -> PoolSide:
        """A pool by name."""
        side = self.sides.get(pool)
        if side is None:
            side = self.sides[pool] = PoolSide(self.router.pools[pool], self, monotonic())
            self.links.watch(side.pool)
            side.pool.on_change(self._pool_changed)
            self._watch(pool)
        return side

    def _watch(self, pool: str) -> None:
        """Hear of the moments at which admission begins and ends to look at requests."""
        gate = self.router.lanes[pool].gate
        if gate is not None and self.forget_leads not in gate.on_active:
            gate.on_active.append(self.forget_leads)

    def _pool_changed(self, event: str, replica: Replica) -> None:
        self.forget_leads()

    def tick(self, now: float) -> None:
        """The proxy's coarse heartbeat."""
        self.now = now
        for client in [client for client in self.clients if client.due() <= now]:
            client.expired(now)
        self.links.expire(now)
        self.metrics.client_connections = len(self.clients)
        self.metrics.upstream_connections = len(self.links.connections)
        for side in self.sides.values():
            side.tick(now)

    def may_debug(self, key: bytes) -> bool:
        """Whether a request may see what others have cached."""
        return self.debug_headers or (bool(self.debug_keys) and self.debug_keys.accept(key))

    def _client_tls(self) -> ssl.SSLContext:
        if self.tls_client is None:
            self.tls_client = ssl.create_default_context()
        return self.tls_client
