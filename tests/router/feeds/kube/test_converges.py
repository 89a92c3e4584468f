"""After any history of changes and faults the replicas are those of the API server.

Histories are random with a seed that a failure prints. The truth is computed from the server's own
objects by a rule written here, not by the code under test. WARMLANE_KUBE_SEEDS=N runs more of them.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest

from tests.common import until
from tests.kube_api.objects import DELETED_AT, inference_pool, pod
from tests.kube_api.server import PODS, POOLS, Asked, KubeServer, Refusal
from tests.router.feeds.kube.rig import Rig, follow

SEEDS = int(os.environ.get("WARMLANE_KUBE_SEEDS", "12"))
STEPS = 60
APPS = ("llm", "llm", "llm", "other")


def truth(server: KubeServer) -> set[str]:
    """Endpoints that must be ready: of pods that match, run, are ready and stay."""
    pools = server.store.collections[POOLS].objects
    pool = pools.get(("default", "llm"))
    if pool is None:
        return set()
    wanted = pool["spec"]["selector"]["matchLabels"].items()
    found = set()
    for (namespace, _), value in server.store.collections[PODS].objects.items():
        meta, status = value["metadata"], value["status"]
        states = {each["type"]: each["status"] for each in status["conditions"]}
        if (
            namespace == "default"
            and wanted <= meta["labels"].items()
            and not meta.get("deletionTimestamp")
            and status["phase"] == "Running"
            and states["Ready"] == "True"
            and meta["labels"].get("ray.io/node-type") != "worker"
        ):
            ports = [port["number"] for port in pool["spec"]["targetPorts"]]
            found |= {f"{status['podIP']}:{port}" for port in ports}
    return found


def change(server: KubeServer, chance: random.Random) -> None:
    """One write, as controllers make them. Few names and addresses, so that they are used again."""
    number = chance.randrange(8)
    name, ip = f"p{number}", f"10.0.0.{number}"
    if chance.random() < 0.15:  # an address goes over to another pod
        name = f"{name}-{chance.randrange(3)}"
    what = chance.random()
    if what < 0.5:
        labels = {"app": chance.choice(APPS)}
        if chance.random() < 0.15:
            labels["ray.io/node-type"] = chance.choice(("head", "worker"))
        more = {"deletionTimestamp": DELETED_AT} if chance.random() < 0.15 else {}
        phase = "Failed" if chance.random() < 0.05 else "Running"
        value = pod(name, ip, ready=chance.random() < 0.8, labels=labels, phase=phase, **more)
        if chance.random() < 0.2:
            value["metadata"]["namespace"] = "elsewhere"
        server.store.put(PODS, value)
    elif what < 0.85:
        server.store.delete(PODS, name)
    elif what < 0.95:
        ports = chance.sample((8000, 8001, 8002), chance.randint(1, 3))
        server.store.put(POOLS, inference_pool("llm", *ports, app=chance.choice(("llm", "other"))))
    else:
        server.store.delete(POOLS, "llm")


def fault(server: KubeServer, rig: Rig, chance: random.Random) -> None:
    """One fault. All end by `heal`."""
    what = chance.randrange(12)
    if what < 2:
        server.half_line = chance.random() < 0.5
        server.drop_watches()
    elif what == 2:
        server.end_watches()
    elif what == 3:
        server.store.compact()
        server.gone_on_request = chance.random() < 0.5
        server.drop_watches()
    elif what == 4:
        server.bookmark()
    elif what == 5:
        server.throttle(chance.randint(1, 3), 0)
    elif what == 6:
        server.fail(chance.choice((500, 502, 503, 504, 404, 403, 400, 410)), "Broken")
        server.drop_watches()
    elif what == 7:
        server.inject(chance.choice((b"garbage\n", b'{"type":"ERROR","object":{"code":410}}\n')))
    elif what == 8:
        rig.access.value = chance.choice(("t", "expired"))
        server.tokens = {"t"}
        server.drop_watches()
    elif what == 9:
        server.page_max = chance.choice((1, 2, 1000))
        server.expire_pages()
    elif what == 10:
        server.byte_by_byte = chance.random() < 0.5
    else:
        server.frozen = True  # until healed: a watch that is silent
        down = Refusal(503, "ServiceUnavailable", {})
        server.refuse = None if chance.random() < 0.5 else lambda _: down


def heal(server: KubeServer, rig: Rig) -> None:
    server.refusals.clear()
    server.refuse, server.tokens, rig.access.value = None, None, "t"
    if server.frozen:
        server.frozen = False
        server.wake()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_the_replicas_converge_to_the_truth(seed: int) -> None:
    chance = random.Random(seed)
    async with KubeServer() as server:
        server.store.put(POOLS, inference_pool("llm", 8000, app="llm"))
        async with follow(server, seed, pool="llm", objectives=False, rewrites=False) as rig:
            for step in range(STEPS):
                change(server, chance)
                if chance.random() < 0.35:
                    fault(server, rig, chance)
                if chance.random() < 0.6:
                    await asyncio.sleep(chance.choice((0, 0, 0.001, 0.005)))
                if step % 20 == 19:
                    heal(server, rig)
                    await until(lambda: rig.ready == truth(server))
            # Replicas without work are gone as soon as they are not wanted, but for those held.
            rig.membership.tick(1.0)
            held = rig.members - rig.ready
            assert rig.ready == truth(server), f"seed {seed}"
            assert len(held) <= 24
            # The membership under it is sound: nothing waits, nobody is refused.
            assert not rig.membership.leaving and not rig.membership._trouble


async def test_the_truth_can_be_missed() -> None:
    """The rule above is no tautology: a pod that the feed never heard of is seen as missing."""
    async with KubeServer() as server:
        server.store.put(POOLS, inference_pool("llm", 8000, app="llm"))
        async with follow(server, pool="llm") as rig:
            server.store.put(PODS, pod("a"))
            await until(lambda: rig.ready == truth(server) == {"10.0.0.1:8000"})
            server.frozen = True
            server.store.put(PODS, pod("b", "10.0.0.2"))
            await asyncio.sleep(0.02)
            assert rig.ready != truth(server)


def test_requests_are_recorded_with_what_matters() -> None:
    assert Asked._fields == ("what", "resource", "namespace", "query", "token")
