"""Replicas of one pool: InferencePool, selector, slices, readiness, termination, leaders, zones."""

from __future__ import annotations

import asyncio

import pytest

from tests.common import until
from tests.kube_api.objects import (
    DELETED_AT,
    endpoint,
    endpoint_slice,
    inference_pool,
    objective,
    pod,
    rewrite,
    rule,
)
from tests.kube_api.server import NODES, OBJECTIVES, PODS, POOLS, REWRITES, SLICES, KubeServer
from tests.router.feeds.kube.rig import follow


async def test_an_inference_pool_gives_its_ready_pods() -> None:
    async with KubeServer() as server:
        server.store.put(POOLS, inference_pool("llm", 8000, app="llm"))
        server.store.put(PODS, pod("a", "10.0.0.1"))
        server.store.put(PODS, pod("b", "10.0.0.2", ready=False))
        server.store.put(PODS, pod("c", "10.0.0.3", labels={"app": "other"}))
        async with follow(server, pool="llm") as rig:
            await until(lambda: rig.ready == {"10.0.0.1:8000"})
            server.store.put(PODS, pod("b", "10.0.0.2"))
            await until(lambda: rig.ready == {"10.0.0.1:8000", "10.0.0.2:8000"})
            server.store.delete(PODS, "a")
            await until(lambda: rig.members == {"10.0.0.2:8000"})
            labels = rig.spec("10.0.0.2:8000").labels
            assert labels["pod"] == "b" and labels["uid"].startswith("uid-")


async def test_each_port_is_a_replica_up_to_eight() -> None:
    async with KubeServer() as server:
        server.store.put(POOLS, inference_pool("llm", *range(8000, 8008), app="llm"))
        server.store.put(PODS, pod("a"))
        async with follow(server, pool="llm") as rig:
            await until(lambda: len(rig.ready) == 8)
            server.store.put(POOLS, inference_pool("llm", 8000, 8001, app="llm"))
            await until(lambda: rig.members == {"10.0.0.1:8000", "10.0.0.1:8001"})
            notes = {"llm-d.ai/active-ports": "8001, 9999"}
            server.store.put(PODS, pod("a", annotations=notes))
            await until(lambda: rig.members == {"10.0.0.1:8001"})


async def test_a_terminating_pod_gets_no_request_from_the_event_on() -> None:
    async with KubeServer() as server:
        server.store.put(PODS, pod("a", "10.0.0.1"))
        server.store.put(PODS, pod("b", "10.0.0.2"))
        async with follow(server, selector="app=llm", ports=[80]) as rig:
            await until(lambda: len(rig.ready) == 2)
            slot = rig.pool.by_name("10.0.0.1:80").slot  # type: ignore[union-attr]
            ticket = rig.pool.ledger.open(slot, 1, 1, 0.0)  # a request that goes on
            # Still ready and running: only the time stamp says that it is to go.
            server.store.put(PODS, pod("a", "10.0.0.1", deletionTimestamp=DELETED_AT))
            await until(lambda: rig.ready == {"10.0.0.2:80"})
            assert rig.members == {"10.0.0.1:80", "10.0.0.2:80"}  # it finishes what it has
            rig.pool.ledger.close(ticket, 1.0)
            rig.membership.tick(1.0)
            assert rig.members == {"10.0.0.2:80"}


@pytest.mark.parametrize("how", ["evicted", "failed", "no address"])
async def test_pods_that_are_about_to_go_are_left_out(how: str) -> None:
    value = pod("a", "10.0.0.1")
    if how == "evicted":
        value["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True"})
    elif how == "failed":
        value["status"]["phase"] = "Failed"
    else:
        del value["status"]["podIP"]
    async with KubeServer() as server:
        server.store.put(PODS, value)
        server.store.put(PODS, pod("b", "10.0.0.2"))
        async with follow(server, selector="app=llm", ports=[80]) as rig:
            await until(lambda: rig.members == {"10.0.0.2:80"})


async def test_a_pod_that_is_not_ready_for_a_while_keeps_what_it_holds() -> None:
    async with KubeServer() as server:
        server.store.put(PODS, pod("a"))
        async with follow(server, selector="app=llm", ports=[80]) as rig:
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            replica = rig.pool.by_name("10.0.0.1:80")
            server.store.put(PODS, pod("a", ready=False))
            await until(lambda: rig.ready == set())
            assert rig.members == {"10.0.0.1:80"}
            server.store.put(PODS, pod("a"))
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            assert rig.pool.by_name("10.0.0.1:80") is replica  # the same slot, the same cache


async def test_an_operators_drain_outlives_a_flap_of_readiness() -> None:
    async with KubeServer() as server:
        server.store.put(PODS, pod("a"))
        server.store.put(PODS, pod("b", "10.0.0.2"))
        async with follow(server, selector="app=llm", ports=[80]) as rig:
            await until(lambda: len(rig.ready) == 2)
            rig.pool.drain("10.0.0.1:80")
            server.store.put(PODS, pod("a", ready=False))
            server.store.put(PODS, pod("b", "10.0.0.2", ready=False))
            await until(lambda: rig.ready == set())
            server.store.put(PODS, pod("a"))
            server.store.put(PODS, pod("b", "10.0.0.2"))
            await until(lambda: rig.ready == {"10.0.0.2:80"})


async def test_an_address_used_again_is_another_replica() -> None:
    async with KubeServer() as server:
        server.store.put(PODS, pod("a"))
        async with follow(server, selector="app=llm", ports=[80]) as rig:
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            first = rig.pool.by_name("10.0.0.1:80")
            server.store.delete(PODS, "a")
            server.store.put(PODS, pod("z"))  # the same address, another pod
            await until(lambda: rig.spec("10.0.0.1:80").labels["pod"] == "z")
            rig.membership.tick(1.0)
            assert rig.pool.by_name("10.0.0.1:80") is not first


async def test_labels_change_without_a_drain() -> None:
    async with KubeServer() as server:
        labels = {"app": "llm", "model": "tiny"}
        server.store.put(PODS, pod("a", labels=labels))
        config = {"model_label": "model", "adapter_label_prefix": "adapter.kubeai.org/"}
        async with follow(server, selector="app=llm", ports=[80], **config) as rig:
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            replica = rig.pool.by_name("10.0.0.1:80")
            assert rig.spec("10.0.0.1:80").labels["model"] == "tiny"
            more = {"adapter.kubeai.org/sql": "h1", "adapter.kubeai.org/chat": "h2", "x": "y"}
            server.store.put(PODS, pod("a", labels=labels | more))
            await until(lambda: rig.spec("10.0.0.1:80").labels.get("adapters") == "chat,sql")
            assert rig.pool.by_name("10.0.0.1:80") is replica and len(rig.ready) == 1
            assert "x" not in rig.spec("10.0.0.1:80").labels


async def test_another_selector_replaces_the_pods_at_once() -> None:
    async with KubeServer() as server:
        server.store.put(POOLS, inference_pool("llm", 80, app="llm"))
        server.store.put(PODS, pod("a", "10.0.0.1"))
        server.store.put(PODS, pod("b", "10.0.0.2", labels={"app": "new"}))
        async with follow(server, pool="llm") as rig:
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            server.store.put(POOLS, inference_pool("llm", 80, app="new"))
            await until(lambda: rig.members == {"10.0.0.2:80"})
            await until(lambda: server.watching.count("pods") == 1)


async def test_a_deleted_pool_is_empty_and_an_empty_selector_selects_nothing() -> None:
    async with KubeServer() as server:
        server.store.put(POOLS, inference_pool("llm", 80, app="llm"))
        server.store.put(PODS, pod("a"))
        async with follow(server, pool="llm") as rig:
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            server.store.delete(POOLS, "llm")
            await until(lambda: rig.members == set())
            server.store.put(POOLS, inference_pool("llm", 80, app="llm"))
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            server.store.put(POOLS, inference_pool("llm", 80))
            await until(lambda: rig.members == set())


async def test_two_pools_never_mix(caplog: pytest.LogCaptureFixture) -> None:
    """Each of two feeds asks for its own object, its own selector and its own namespace."""
    async with KubeServer() as server:
        for name, app in (("one", "x"), ("two", "y")):
            server.store.put(POOLS, inference_pool(name, 80, app=app))
            server.store.put(OBJECTIVES, objective(f"o-{name}", name, 3))
            server.store.put(REWRITES, rewrite(f"r-{name}", name, rule((f"m-{name}", 1))))
        server.store.put(PODS, pod("a", "10.0.0.1", labels={"app": "x"}))
        server.store.put(PODS, pod("b", "10.0.0.2", labels={"app": "y"}))
        server.store.put(PODS, pod("c", "10.0.0.3", labels={"app": "x"}, namespace="elsewhere"))
        async with follow(server, pool="one") as one, follow(server, pool="two") as two:
            await until(lambda: one.ready == {"10.0.0.1:80"} and two.ready == {"10.0.0.2:80"})
            await until(lambda: one.found_objectives == {"o-one": 3} and bool(two.found_rewrites))
            assert two.found_objectives == {"o-two": 3}
            assert [each.name for each in two.found_rewrites] == ["r-two"]
            server.store.put(PODS, pod("a", "10.0.0.1", labels={"app": "y"}))  # it moves over
            await until(lambda: one.members == set())
            await until(lambda: two.ready == {"10.0.0.1:80", "10.0.0.2:80"})


async def test_slices_by_service() -> None:
    async with KubeServer() as server:
        ref = {"kind": "Pod", "name": "a", "uid": "u1"}
        server.store.put(
            SLICES,
            endpoint_slice(
                "s1",
                "llm",
                8000,
                endpoint("10.0.0.1", zone="z1", targetRef=ref),
                endpoint("10.0.0.2", conditions={"ready": False}),
                endpoint("10.0.0.3", conditions={"ready": True, "terminating": True}),
                endpoint("10.0.0.4", conditions={"ready": None}),
            ),
        )
        server.store.put(SLICES, endpoint_slice("s2", "other", 8000, endpoint("10.0.0.9")))
        async with follow(server, slices="kubernetes.io/service-name=llm") as rig:
            await until(lambda: rig.ready == {"10.0.0.1:8000", "10.0.0.4:8000"})
            spec = rig.spec("10.0.0.1:8000")
            assert (spec.zone, spec.labels["pod"]) == ("z1", "a")
            # While it moves from one slice to another it stands in both, in one as not ready.
            leaving = endpoint("10.0.0.1", conditions={"ready": False}, targetRef=ref)
            both = endpoint("10.0.0.1", zone="z1", targetRef=ref)
            server.store.put(SLICES, endpoint_slice("s3", "llm", 8000, both))
            server.store.put(SLICES, endpoint_slice("s1", "llm", 8000, leaving))
            await until(lambda: rig.ready == {"10.0.0.1:8000"})
            server.store.put(SLICES, endpoint_slice("s3", "llm", 8000))
            await until(lambda: rig.ready == set() and rig.members == {"10.0.0.1:8000"})


async def test_zones_of_nodes() -> None:
    async with KubeServer() as server:
        zone = "topology.kubernetes.io/zone"
        server.store.put(
            NODES, {"metadata": {"name": "n1", "namespace": "", "labels": {zone: "a"}}}
        )
        server.store.put(PODS, pod("a", "10.0.0.1", node="n1"))
        server.store.put(PODS, pod("b", "10.0.0.2", node="n2"))
        labels = {"app": "llm", zone: "own"}
        server.store.put(PODS, pod("c", "10.0.0.3", node="n1", labels=labels))
        async with follow(server, selector="app=llm", ports=[80], node_zones=True) as rig:
            await until(lambda: len(rig.ready) == 3)
            assert [rig.spec(f"10.0.0.{n}:80").zone for n in (1, 2, 3)] == ["a", "", "own"]
            late = rig.pool.by_name("10.0.0.2:80")
            server.store.put(
                NODES, {"metadata": {"name": "n2", "namespace": "", "labels": {zone: "b"}}}
            )
            await until(lambda: rig.spec("10.0.0.2:80").zone == "b")
            assert rig.pool.by_name("10.0.0.2:80") is late


async def test_priorities_and_rewrites_are_told_and_their_absence_is_fine(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "warmlane.feeds")
    async with KubeServer(custom=False) as server:
        server.store.install(POOLS)
        server.store.put(POOLS, inference_pool("llm", 80, app="llm"))
        server.store.put(PODS, pod("a"))
        async with follow(server, pool="llm") as rig:
            await until(lambda: rig.ready == {"10.0.0.1:80"})
            await until(lambda: rig.count("failures", "p", "inferencemodelrewrites") > 6)
            absent = [r.getMessage() for r in caplog.records if "kube_absent" in r.getMessage()]
            assert len(absent) == 2  # once for each of the two, however often it is asked
            server.store.install(OBJECTIVES, REWRITES)  # somebody installs them
            server.store.put(OBJECTIVES, objective("gold", "llm", 10))
            server.store.put(OBJECTIVES, objective("none", "llm", None))
            server.store.put(OBJECTIVES, objective("alien", "other", 5))
            await until(lambda: rig.found_objectives == {"gold": 10, "none": 0})
            server.store.put(REWRITES, rewrite("r", "llm", rule(("v2", 1), models=("v1",))))
            await until(lambda: [each.name for each in rig.found_rewrites] == ["r"])
            server.store.delete(REWRITES, "r")
            await until(lambda: rig.found_rewrites == [])


async def test_an_older_group_is_read_where_only_that_is_there() -> None:
    old = "apis/inference.networking.x-k8s.io/v1alpha2/inferencepools"
    async with KubeServer(custom=False) as server:
        server.store.install(old)
        value = inference_pool("llm", app="llm")
        value["spec"] = {"selector": {"app": "llm"}, "targetPortNumber": 8000}
        server.store.put(old, value)
        server.store.put(PODS, pod("a"))
        async with follow(server, pool="llm") as rig:
            await until(lambda: rig.ready == {"10.0.0.1:8000"})


async def test_a_burst_of_events_is_told_once() -> None:
    async with KubeServer() as server, follow(server, selector="app=llm", ports=[80]) as rig:
        await until(lambda: server.watching == ["pods"])
        before = rig.deliveries
        for number in range(200):
            server.store.put(PODS, pod(f"p{number}", f"10.0.1.{number}"))
        await until(lambda: len(rig.ready) == 200)
        assert rig.deliveries - before < 100
        await asyncio.sleep(0)
