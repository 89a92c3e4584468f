"""What all requests of one proxy share: the router, the links to replicas, health and limits.

One object, owned by the proxy's event loop. `now` is a coarse clock (one tick behind at most):
good enough for time-outs of seconds, and free.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from time import monotonic
from typing import Final, Protocol

from warmlane.router.attempts import COUNTED, Fault, RetryBudget
from warmlane.router.config import Config
from warmlane.router.core import Router
from warmlane.router.health import Ejector
from warmlane.router.pool import Pool, Replica
from warmlane.router.proxy.access import Keys
from warmlane.router.proxy.links import Links
from warmlane.router.proxy.tracked import Tracked
from warmlane.router.requests import TransferParams
from warmlane.router.shadow import Shadow
from warmlane.router.types import ReplicaState

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

    def _changed(self, event: str, replica: Replica) -> None:
        if event == "removed":
            self.ejector.forget(replica.slot)


class State:
    """See the module."""

    def __init__(self, router: Router, config: Config, keys: Keys, debug_keys: Keys) -> None:
        now = monotonic()
        self.router = router
        self.metrics = router.metrics
        self.config = config
        self.limits = config.limits
        self.timeouts = config.timeouts
        self.transfer_params: TransferParams = config.transfer_params
        self.debug_headers = config.debug_headers
        self.keys = keys
        self.guarded = bool(keys)  # by configuration, whatever is in the file
        self.debug_keys = debug_keys
        self.now = now
        self.inflight = 0
        self.buffered_bytes = 0
        self.draining = False
        self.clients: Tracked[Client] = Tracked()
        self.rand = random.Random().getrandbits
        self.shadow: Shadow | None = None  # set by the command: decisions beside a baseline's
        self.tls_client: ssl.SSLContext | None = None
        self.links = Links(
            keepalive_s=self.timeouts.upstream_keepalive_s,
            max_idle=self.limits.upstream_idle,
            tls=self._client_tls,
        )
        self.sides: dict[str, PoolSide] = {}
        for pool in router.pools.values():
            self.side(pool.name)

    def follow(self, config: Config) -> None:
        """A reload: pools may have come and gone. Requests under way keep what they began with."""
        self.config = config
        self.limits = config.limits
        self.timeouts = config.timeouts
        self.transfer_params = config.transfer_params
        self.debug_headers = config.debug_headers
        pools = self.router.pools
        self.sides = {
            name: side for name, side in self.sides.items() if pools.get(name) is side.pool
        }
        for name in pools:
            self.side(name).follow(config)

    def side(self, pool: str) -> PoolSide:
        """A pool by name."""
        side = self.sides.get(pool)
        if side is None:
            side = self.sides[pool] = PoolSide(self.router.pools[pool], self, monotonic())
            self.links.watch(side.pool)
        return side

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
