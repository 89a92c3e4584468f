"""deploy/kubernetes/rbac.yaml allows what is asked, and nothing that is never asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml

from tests.common import until
from tests.kube_api.objects import inference_pool, pod
from tests.kube_api.server import CUSTOM, LEASES, PODS, KubeServer
from tests.router.feeds.kube.rig import PlainAccess, follow
from warmlane.router.config import Leader
from warmlane.router.feeds.kube_lease import Lease
from warmlane.router.metrics import Metrics

RBAC = Path(__file__).parents[4] / "deploy" / "kubernetes" / "rbac.yaml"
Right = tuple[str, str, str]  # verb, group, resource


def granted() -> set[Right]:
    return {
        (verb, group, resource)
        for document in yaml.safe_load_all(RBAC.read_text())
        for rule in document.get("rules", ())
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


OLD = tuple(
    f"apis/inference.networking.x-k8s.io/v1alpha2/{resource}"
    for resource in ("inferencepools", "inferenceobjectives", "inferencemodelrewrites")
)


async def use(server: KubeServer) -> None:
    """Every way to find replicas, and an election, until each of them has done all it does."""

    def done(what: str) -> set[str]:
        return {each.resource for each in server.requests if each.what == what}

    server.store.put(PODS, pod("a"))
    async with (
        follow(server, pool="llm", node_zones=True),
        follow(server, slices="kubernetes.io/service-name=llm"),
    ):
        await until(lambda: done("watch") >= {*server.store.collections} - {LEASES})
    config = Leader(lease="warmlane", retry_s=0.01, renew_s=5.0)
    clock = asyncio.get_running_loop().time
    task = asyncio.create_task(Lease(config, PlainAccess(server.url), Metrics(), clock).run())
    await until(lambda: LEASES in done("create") & done("replace") & done("get"))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def asked() -> set[Right]:
    """With the newer APIs installed, and with the older ones alone."""
    seen: set[Right] = set()
    for resources in (CUSTOM, OLD):
        async with KubeServer(custom=False) as server:
            server.store.install(*resources)
            server.store.put(resources[0], inference_pool("llm", 80, app="llm"))
            await use(server)
            for each in server.requests:
                parts = each.resource.split("/")
                group = parts[1] if parts[0] == "apis" else ""
                seen.add(({"replace": "update"}.get(each.what, each.what), group, parts[-1]))
    return seen


async def test_the_rights_are_those_that_are_used() -> None:
    rights, used = granted(), await asked()
    assert used <= rights, used - rights
    assert rights <= used, rights - used


def test_nothing_is_granted_by_a_wildcard() -> None:
    assert not any("*" in right for right in granted())
