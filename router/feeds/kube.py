"""Replicas, rewrites and priorities of one pool out of the Kubernetes API.

Owns the watches of one pool and nothing else: two pools never share a list, and each watch asks for
one namespace and one selector, so that no pod of another InferencePool can come in. What it finds
goes to the membership whole, at most once per turn of the loop. A pod with a `deletionTimestamp`
leaves with the event that tells it. A pod that was ready and is not is held: it gets no request,
and what its cache holds is remembered.

An InferencePool that is deleted empties the pool; an API server that cannot be asked changes
nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

from warmlane.router.config import Config, Kubernetes
from warmlane.router.feeds.kube_access import Access, open_access
from warmlane.router.feeds.kube_api import KubeApi
from warmlane.router.feeds.kube_objects import (
    ZONE,
    Found,
    InferencePool,
    ModelRewrite,
    Node,
    Objective,
    Pod,
    Slice,
    Thing,
    objectives_of,
    of_pods,
    of_slices,
    rewrites_of,
)
from warmlane.router.feeds.kube_watch import Delays, Follower
from warmlane.router.metrics import Metrics
from warmlane.router.rewrites import Rewrite
from warmlane.router.types import ReplicaSpec

log = logging.getLogger("warmlane.feeds")

T = TypeVar("T", bound=Thing)

KIND: Final = "kubernetes"
# group/version by resource, newest first; the older group is that of the incubation project.
_APIS: Final[Mapping[str, tuple[str, ...]]] = {
    "inferencepools": (
        "apis/inference.networking.k8s.io/v1",
        "apis/inference.networking.x-k8s.io/v1alpha2",
    ),
    "inferenceobjectives": (
        "apis/llm-d.ai/v1",
        "apis/llm-d.ai/v1alpha2",
        "apis/inference.networking.x-k8s.io/v1alpha2",
    ),
    "inferencemodelrewrites": (
        "apis/llm-d.ai/v1alpha2",
        "apis/inference.networking.x-k8s.io/v1alpha2",
    ),
    "pods": ("api/v1",),
    "endpointslices": ("apis/discovery.k8s.io/v1",),
}


def accesses(config: Config) -> dict[str, Access]:
    """By pool name, where its config names Kubernetes. ConfigError: nothing usable there."""
    return {
        pool.name: open_access(
            found.kubeconfig, found.context, f"pools[{pool.name}].discovery.kubernetes"
        )
        for pool in config.pools
        if (found := pool.discovery.kubernetes) is not None
    }


class Receiver(Protocol):
    """What a feed tells. Called on the loop."""

    def replicas(self, specs: Sequence[ReplicaSpec], held: frozenset[str]) -> None:
        """The whole list; `held`: URLs of it that get no new request for now."""

    def rewrites(self, found: Sequence[Rewrite]) -> None:
        """All rewrites of the pool."""

    def objectives(self, found: Mapping[str, int]) -> None:
        """Priority by objective name."""


class KubeFeed:
    """Follows what the config of one pool names: `run()` until cancelled."""

    def __init__(
        self,
        pool: str,
        config: Kubernetes,
        access: Access,
        metrics: Metrics,
        receiver: Receiver,
        *,
        delays: Delays | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self.pool = pool
        self.config = config
        self.namespace = config.namespace or access.namespace
        self._access = access
        self._metrics = metrics
        self._receiver = receiver
        self._delays = delays or Delays()
        self._chance = chance or random.Random()
        self._api: KubeApi | None = None
        self._pools: Follower[InferencePool] | None = None
        self._pods: Follower[Pod] | None = None
        self._slices: Follower[Slice] | None = None
        self._nodes: Follower[Node] | None = None
        self._followed = ""  # selector that self._pods asks for
        self._turn = asyncio.Event()  # another selector is wanted
        self._known: frozenset[tuple[str, str]] = frozenset()  # (url, key) once seen ready
        self._told: tuple[list[ReplicaSpec], frozenset[str]] | None = None
        self._due = False
        self._missing = False

    @property
    def told(self) -> bool:
        """The list of replicas was handed on at least once."""
        return self._told is not None

    async def run(self) -> None:
        config = self.config
        async with KubeApi(self._access) as self._api, asyncio.TaskGroup() as group:
            if config.node_zones:
                self._nodes = self._follower("nodes", ("/api/v1/nodes",), Node, self._soon)
                group.create_task(self._nodes.run())
            if config.slices:
                self._slices = self._collection(
                    "endpointslices", Slice, self._soon, labelSelector=config.slices
                )
                group.create_task(self._slices.run())
                return
            if config.pool:
                self._pools = self._collection(
                    "inferencepools",
                    InferencePool,
                    self._pool_changed,
                    fieldSelector=f"metadata.name={config.pool}",
                )
                group.create_task(self._pools.run())
                self._extras(group)
            group.create_task(self._follow_pods())

    def _extras(self, group: asyncio.TaskGroup) -> None:
        """Objects that refer to the pool by name. Their absence is fine."""
        if self.config.objectives:
            objectives = self._collection(
                "inferenceobjectives",
                Objective,
                lambda: self._receiver.objectives(
                    objectives_of(objectives.objects.values(), self.config.pool)
                ),
            )
            group.create_task(objectives.run())
        if self.config.rewrites:
            rewrites = self._collection(
                "inferencemodelrewrites",
                ModelRewrite,
                lambda: self._receiver.rewrites(
                    rewrites_of(rewrites.objects.values(), self.config.pool)
                ),
            )
            group.create_task(rewrites.run())

    async def _follow_pods(self) -> None:
        """The pods of the present selector; a new selector is a new watch."""
        while True:
            self._turn.clear()
            selector = self._selector()
            if selector != self._followed:
                self._pods, self._followed = None, selector
            if not selector:
                await self._turn.wait()
                continue
            self._pods = self._collection("pods", Pod, self._soon, labelSelector=selector)
            async with asyncio.TaskGroup() as group:
                following = group.create_task(self._pods.run())
                await self._turn.wait()
                following.cancel()

    def _inference_pool(self) -> InferencePool | None:
        found = self._pools.objects.values() if self._pools is not None else ()
        return next((each for each in found if each.metadata.name == self.config.pool), None)

    def _selector(self) -> str:
        if not self.config.pool:
            return self.config.selector
        pool = self._inference_pool()
        return "" if pool is None else pool.selector()

    def _pool_changed(self) -> None:
        """Another selector restarts the watch of pods; other ports need only another look."""
        if self._selector() != self._followed:
            self._turn.set()
        pools, pool = self._pools, self._inference_pool()
        missing = pools is not None and pools.synced and (pool is None or not pool.selector())
        if missing != self._missing:
            self._missing = missing
            name = f"{self.namespace}/{self.config.pool}"
            if missing:
                why = "no such InferencePool" if pool is None else "its selector is empty"
                log.warning('event=kube_no_pool pool=%s name=%s why="%s"', self.pool, name, why)
            else:
                log.info("event=kube_pool_found pool=%s name=%s", self.pool, name)
        self._soon()

    def _soon(self) -> None:
        """Publish once, after the events that have arrived together."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._due = False
        found = self._found()
        if found is None:
            return
        ready = {(each.spec.url, each.key) for each in found if each.ready}
        present = {(each.spec.url, each.key) for each in found}
        self._known = frozenset((self._known | ready) & present)
        chosen = [each for each in found if (each.spec.url, each.key) in self._known]
        held = frozenset(each.spec.url for each in chosen if not each.ready)
        told = (sorted((each.spec for each in chosen), key=lambda spec: spec.url), held)
        if told == self._told:
            return
        self._told = told
        self._receiver.replicas(*told)

    def _found(self) -> list[Found] | None:
        """What is there now; None while that is not known."""
        if self._slices is not None:
            return (
                of_slices(self._slices.objects.values(), self.config)
                if (self._slices.synced)
                else None
            )
        if self._missing:
            return []
        nodes = self._nodes
        if nodes is not None and not (nodes.synced or nodes.absent):
            return None
        pool, pods = self._inference_pool(), self._pods
        if pods is None or not pods.synced or self._selector() != self._followed:
            return None
        zones = (
            {}
            if nodes is None
            else {
                node.metadata.name: (node.metadata.labels or {}).get(ZONE, "")
                for node in nodes.objects.values()
            }
        )
        ports = pool.ports() if pool is not None else tuple(self.config.ports)
        return of_pods(pods.objects.values(), ports, self.config, zones)

    def _collection(
        self, resource: str, kind: type[T], on_change: Callable[[], None], **query: str
    ) -> Follower[T]:
        place = f"namespaces/{quote(self.namespace, safe='')}/{resource}"
        paths = [f"/{api}/{place}" for api in _APIS[resource]]
        return self._follower(resource, paths, kind, on_change, **query)

    def _follower(
        self,
        resource: str,
        paths: Sequence[str],
        kind: type[T],
        on_change: Callable[[], None],
        **query: str,
    ) -> Follower[T]:
        assert self._api is not None
        return Follower(
            self._api,
            resource,
            paths,
            kind,
            pool=self.pool,
            metrics=self._metrics,
            on_change=on_change,
            query=query,
            delays=self._delays,
            chance=self._chance,
        )
