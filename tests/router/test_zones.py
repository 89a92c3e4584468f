"""Requests by pair of zones: booked at a scrape, kept when replicas leave and zones change."""

from __future__ import annotations

import pytest

from warmlane.router import zones as module
from warmlane.router.config import Config, PoolConfig
from warmlane.router.core import Router
from warmlane.router.feeds.membership import Membership
from warmlane.router.metrics_export import RouterCollector, attach
from warmlane.router.types import ReplicaSpec

REQUESTS, TOKENS = "warmlane_zone_requests_total", "warmlane_zone_prompt_tokens_total"


def specs(*zones: str) -> list[ReplicaSpec]:
    return [
        ReplicaSpec(url=f"http://r{slot}:8000", name=f"r{slot}", zone=zone)
        for slot, zone in enumerate(zones)
    ]


def started(zone: str, *zones: str) -> tuple[Router, RouterCollector]:
    pool = PoolConfig(name="p", models=["m"], replicas=specs(*zones))
    router = Router(Config(pools=[pool], zone=zone))
    return router, attach(router.metrics, router.pools, lambda _: (0, 0), lambda: 0.0)


def answered(router: Router, replica: str, count: int = 1, tokens: int = 0) -> None:
    for _ in range(count):
        router.metrics.request_done("p", replica, "chat", 200)
    if tokens:
        router.metrics.hit("p", replica, 0, None, tokens)


def pairs(collector: RouterCollector, name: str = REQUESTS) -> dict[tuple[str, ...], float]:
    """Zone of router, zone of replica, in_zone -> value. A scrape reads the requests first."""
    found = {each: dict(collector.samples(each)) for each in (REQUESTS, TOKENS)}
    assert {labels[0] for labels in found[name]} <= {"p"}
    return {labels[1:]: value for labels, value in found[name].items()}


def test_requests_and_tokens_by_pair() -> None:
    router, collector = started("a", "a", "b", "")
    assert pairs(collector) == {}
    answered(router, "r0", 3, tokens=100)
    answered(router, "r1", 2, tokens=40)
    answered(router, "r2")
    answered(router, "")  # refused by the router: no pair of zones
    router.metrics.request_done("p", "r0", "completions", 503)
    wanted = {("a", "a", "yes"): 4, ("a", "b", "no"): 2, ("a", "unknown", "unknown"): 1}
    assert pairs(collector) == wanted
    assert pairs(collector) == wanted  # a second scrape counts nothing twice
    assert pairs(collector, TOKENS)["a", "a", "yes"] == 100
    answered(router, "r1", tokens=2)
    assert pairs(collector)["a", "b", "no"] == 3
    assert pairs(collector, TOKENS)["a", "b", "no"] == 42


def test_without_zones_there_is_no_series() -> None:
    router, collector = started("", "", "")
    answered(router, "r0", 5, tokens=5)
    assert pairs(collector) == {} == pairs(collector, TOKENS)
    assert f"{REQUESTS}{{" not in "".join(collector.text())


def test_a_router_without_a_zone_still_tells_those_of_the_replicas() -> None:
    router, collector = started("", "a", "b")
    answered(router, "r1")
    assert pairs(collector) == {("unknown", "b", "unknown"): 1}


def test_what_a_replica_counted_outlives_it() -> None:
    router, collector = started("a", "a", "b")
    members = Membership(router.pools["p"], router.metrics, drain_s=0.0)
    members.update("config", specs("a", "b"), 0.0)
    answered(router, "r1", 2, tokens=7)
    assert pairs(collector)["a", "b", "no"] == 2
    answered(router, "r1")  # not yet booked when it goes
    members.update("config", specs("a"), 0.0)
    members.tick(1.0)
    assert router.pools["p"].by_name("r1") is None
    assert pairs(collector) == {("a", "b", "no"): 3}
    assert pairs(collector, TOKENS) == {("a", "b", "no"): 7}
    members.update("config", specs("a", "a"), 2.0)  # another machine under the old name
    answered(router, "r1")
    assert pairs(collector) == {("a", "b", "no"): 3, ("a", "a", "yes"): 1}


def test_zones_that_become_known() -> None:
    router, collector = started("", "", "")
    answered(router, "r0", 2)
    assert pairs(collector) == {}
    router.reload(Config(pools=[router.config.pools[0]], zone="a"))
    answered(router, "r0")
    router.pools["p"].relabel(specs("b")[0])
    answered(router, "r1")
    assert pairs(collector) == {
        ("unknown", "unknown", "unknown"): 2,  # from before the router had a zone
        ("a", "b", "no"): 1,
        ("a", "unknown", "unknown"): 1,
    }
    router.reload(Config(pools=[router.config.pools[0]], zone="b"))
    answered(router, "r0")
    assert pairs(collector)["b", "b", "yes"] == 1


def test_pairs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 2)
    router, collector = started("z0", *(f"z{number}" for number in range(5)))
    for number in range(5):
        answered(router, f"r{number}")
    found = pairs(collector)
    assert sum(found.values()) == 5
    assert found["z0", "other", "no"] == 3
    assert len(found) == 3
