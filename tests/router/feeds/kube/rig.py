"""A feed on a pool, in front of the test API server, with short waits."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec

from tests.common import until
from tests.kube_api.server import KubeServer
from warmlane.router.config import Kubernetes, PoolConfig
from warmlane.router.feeds.kube import KIND, KubeFeed
from warmlane.router.feeds.kube_watch import Delays
from warmlane.router.feeds.membership import Membership
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool
from warmlane.router.rewrites import Rewrite
from warmlane.router.types import ReplicaSpec, ReplicaState

__all__ = ["QUICK", "PlainAccess", "Rig", "follow", "until"]

QUICK = Delays(first_s=0.002, longest_s=0.02, absent_s=0.02)


class PlainAccess:
    """An access without TLS whose token a test may change."""

    namespace = "default"

    def __init__(self, server: str, token: str = "t") -> None:
        self.server = server
        self.value = token
        self.asked_again = 0

    def tls(self) -> bool:
        return True

    async def token(self, *, again: bool = False) -> str:
        self.asked_again += again
        return self.value


class Rig:
    """One pool that a feed fills. Also the feed's receiver."""

    def __init__(self, server: KubeServer, config: Kubernetes, seed: int = 1) -> None:
        self.access = PlainAccess(server.url)
        self.metrics = Metrics()
        self.pool = Pool(PoolConfig(name="p"))
        self.membership = Membership(self.pool, self.metrics, drain_s=1e9)
        self.found_rewrites: list[Rewrite] = []
        self.found_objectives: dict[str, int] = {}
        self.deliveries = 0
        self.chance = random.Random(seed)
        self.feed = KubeFeed(
            "p", config, self.access, self.metrics, self, delays=QUICK, chance=self.chance
        )

    def replicas(self, specs: Sequence[ReplicaSpec], held: frozenset[str]) -> None:
        self.deliveries += 1
        self.membership.update(KIND, specs, 0.0, held)
        self.membership.tick(0.0)

    def rewrites(self, found: Sequence[Rewrite]) -> None:
        self.found_rewrites = list(found)

    def objectives(self, found: Mapping[str, int]) -> None:
        self.found_objectives = dict(found)

    @property
    def ready(self) -> set[str]:
        """Endpoints that would get a request now."""
        members = self.pool
        return {each.endpoint for each in members if each.state is ReplicaState.READY}

    @property
    def members(self) -> set[str]:
        return {each.endpoint for each in self.pool}

    def spec(self, endpoint: str) -> ReplicaSpec:
        found = self.pool.by_name(endpoint)
        assert found is not None
        return found.spec

    def count(self, family: str, *labels: str) -> int:
        """Sum of a counter over the labels that begin so."""
        cells = self.metrics.counts[f"warmlane_kube_{family}_total"]
        return sum(n for key, n in cells.items() if key[: len(labels)] == labels)


@asynccontextmanager
async def follow(server: KubeServer, seed: int = 1, **fields: object) -> AsyncIterator[Rig]:
    """A running feed with that `discovery.kubernetes`."""
    rig = Rig(server, msgspec.convert(fields, Kubernetes), seed)
    task = asyncio.create_task(rig.feed.run())
    try:
        yield rig
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError), ended
