"""Filters, pickers and the registry that builds them from config."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.router.fleet import TURN, chat, config_of, router_of
from warmlane.router.candidates import CandidateColumns
from warmlane.router.config import PoolConfig
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError, NoReplica
from warmlane.router.interfaces import Candidates
from warmlane.router.pickers import Best, Random, RoundRobin
from warmlane.router.registry import POLICIES, build_parts
from warmlane.router.types import LoadSnapshot, ModelList, ReplicaState, Request
from warmlane.scorers import BUILTIN


class Longest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scorer of a stranger: replicas with long names first."""

    most: int = 10

    def score(self, request: Request, candidates: Candidates) -> Sequence[float]:
        return [
            min(len(each.name) / self.most, 1.0) if each else 0.0 for each in candidates.replicas
        ]


class NoScorer:
    """Has no `score`."""


def choose(router: Router, request: Request | None = None, rand: int = 1) -> list[str]:
    """Names of the choices, best first; the ticket is closed."""
    lane = router.lanes["default"]
    decision = router.decide(request or chat(), 0.0, rand)
    lane.pool.ledger.close(decision.ticket, 0.0)
    return [lane.pool.replicas[slot].name for slot in decision.choices]  # type: ignore[union-attr]


def removed(router: Router, request: Request | None = None) -> tuple[int, dict[str, int]]:
    with pytest.raises(NoReplica) as caught:
        router.decide(request or chat(), 0.0, 1)
    assert caught.value.retry_after_s
    return caught.value.status, caught.value.removed


def test_only_ready_ones() -> None:
    router = router_of(4)
    pool = router.pools["default"]
    pool.set_state(0, ReplicaState.EJECTED)
    pool.set_state(1, ReplicaState.JOINING)
    pool.drain("r2")
    assert choose(router) == ["r3"]
    pool.remove("r3", 0.0)
    assert choose(router) == ["r0", "r1"], "the last resort"
    pool.drain("r0")
    pool.drain("r1")
    assert removed(router) == (503, {"ready": 3, "served": 0})
    pool.undrain("r2")
    assert choose(router) == ["r2"]


def test_served_by_model_and_adapter() -> None:
    router = router_of(3)
    pool = router.pools["default"]
    pool.set_models(0, ModelList(models=frozenset({"m"}), adapters={"a": "m"}))
    pool.set_models(1, ModelList(models=frozenset({"m"})))
    assert sorted(choose(router, chat(model="m"))) == ["r0", "r1", "r2"], "r2 is unknown: believed"
    assert sorted(choose(router, chat(model="a"))) == ["r0", "r2"]
    pool.set_models(2, ModelList(models=frozenset({"other"})))
    assert sorted(choose(router, chat(model="m"))) == ["r0", "r1"]
    pool.drain("r0")
    assert removed(router, chat(model="a"))[1] == {"ready": 1, "served": 2}


def test_subset_by_name_or_endpoint() -> None:
    router = router_of(4)
    request = chat(subset=frozenset({"r1", "r3:8000", "unknown"}))
    assert sorted(choose(router, request)) == ["r1", "r3"]
    assert sorted(choose(router)) == ["r0", "r1", "r2", "r3"], "the next request is free again"
    status, counts = removed(router, chat(subset=frozenset({"x"})))
    assert status == 503 and counts["subset"] == 4


def test_labels() -> None:
    specs = [{"url": f"r{i}:1", "labels": {"gpu": kind}} for i, kind in enumerate(["a", "b", "a"])]
    config = msgspec.structs.replace(
        config_of(0),
        pools=[
            msgspec.convert(
                {"replicas": specs, "filters": [{"name": "labels", "match": {"gpu": "a"}}]},
                PoolConfig,
            )
        ],
    )
    assert sorted(choose(Router(config))) == ["r0:1", "r2:1"]


def test_all_saturated_is_429_and_counts() -> None:
    router = router_of(3, filters=[{"name": "not_saturated", "requests": 1, "waiting": 5}])
    pool = router.pools["default"]
    pool.update_load(2, LoadSnapshot(taken_at=0.0, waiting=9))
    router.decide(chat(), 0.0, 1)
    router.decide(chat(), 0.0, 1)
    status, counts = removed(router)
    assert status == 429 and counts == {"ready": 0, "served": 0, "subset": 0, "not_saturated": 3}


def test_a_stale_scrape_never_saturates() -> None:
    router = router_of(1, filters=[{"name": "not_saturated", "waiting": 5, "kv_usage": 0.9}])
    router.pools["default"].update_load(0, LoadSnapshot(taken_at=0.0, waiting=99, kv_usage=1.0))
    assert removed(router)[0] == 429
    assert router.decide(chat(), 60.0, 1).choices == (0,)


def candidates_of(mask: list[int]) -> CandidateColumns:
    router = router_of(len(mask))
    candidates = router.lanes["default"].decider.begin("", "", 1.0, 0.0)
    candidates.mask = array("B", mask)
    return candidates


def test_round_robin_is_one() -> None:
    router = router_of(3, policy="round-robin")
    assert [choose(router)[0] for _ in range(7)] == ["r0", "r1", "r2"] * 2 + ["r0"]
    router.pools["default"].set_state(1, ReplicaState.EJECTED)
    assert [choose(router)[0] for _ in range(4)] == ["r2", "r0", "r2", "r0"]
    assert choose(router) == ["r2", "r0"], "the next in turn are the fallbacks"


def test_explaining_takes_nobodys_turn() -> None:
    router = router_of(3, policy="round-robin")
    for _ in range(3):
        router.explain(chat(), 0.0)
    assert choose(router)[0] == "r0"


@given(
    st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(0, 2**64), st.integers(1, 5)
)
def test_every_picker_gives_distinct_eligible_slots(mask: list[int], rand: int, limit: int) -> None:
    candidates = candidates_of(mask)
    totals, order = array("d", [0.0] * len(mask)), array("i", [-1] * 5)
    for picker in (Best(), RoundRobin(), Random()):
        count = picker.pick(candidates, totals, limit, rand, order)
        chosen = list(order[:count])
        assert count == min(limit, sum(mask))
        assert len(set(chosen)) == count and all(mask[slot] for slot in chosen)


def test_random_is_fair() -> None:
    candidates, order = candidates_of([1, 0, 1, 1]), array("i", [0] * 5)
    seen: Counter[int] = Counter()
    for turn in range(3000):
        Random().pick(candidates, array("d"), 1, (turn + 1) * TURN % 2**64, order)
        seen[order[0]] += 1
    assert set(seen) == {0, 2, 3} and min(seen.values()) > 850


def test_every_builtin_can_be_built_and_decides_alone() -> None:
    for name in BUILTIN:
        router = router_of(3, policy=name)
        assert len(choose(router, chat(session="s"))) == 3
        assert router.decide(chat(), 0.0, 1).fallback == "", name
    for name in POLICIES:
        assert len(choose(router_of(3, policy=name))) == 3


def test_a_scorer_from_elsewhere() -> None:
    path = f"{__name__}:Longest"
    for pool in ({"policy": path}, {"scorers": [{"name": path, "most": 5, "weight": 3}]}):
        router = router_of(12, **pool)
        assert choose(router)[0] in ("r10", "r11")


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"scorers": ["nope"]}, ["pools[0].scorers[0]", "'nope'", "known: ", "prefix_hit"]),
        ({"policy": "nope"}, ["pools[0].policy", "'nope'", "round-robin"]),
        ({"scorers": ["no_such_module_x:Y"]}, ["scorers[0]", "cannot be imported"]),
        ({"scorers": [f"{__name__}:Nothing"]}, ["scorers[0]", "Nothing"]),
        ({"scorers": [f"{__name__}:NoScorer"]}, ["no Scorer", "score"]),
        ({"scorers": [{"name": "zone", "weight": -1}]}, ["scorers[0].weight", "-1"]),
        ({"scorers": [{"name": "zone", "weight": True}]}, ["scorers[0].weight", "True"]),
        ({"scorers": [{"name": "zone", "prefr": "x"}]}, ["scorers[0].prefr", "'prefer'"]),
        ({"scorers": [{"name": "queue_depth", "limit": "x"}]}, ["scorers[0].limit", "'x'"]),
        ({"scorers": [{"weight": 1}]}, ["scorers[0].name", "None"]),
        ({"scorers": ["zone", "zone"]}, ["scorers[1]", "'zone'", "twice"]),
        ({"filters": ["ready"]}, ["filters[0]", "'ready'", "always"]),
        ({"filters": ["nope"]}, ["filters[0]", "'nope'", "labels"]),
        ({"filters": [{"name": "labels"}]}, ["filters[0]", "match"]),
        ({"picker": "nope"}, ["picker", "'nope'", "round_robin"]),
        ({"policy": "round-robin", "picker": "best"}, ["picker", "'best'", "empty"]),
    ],
)
def test_a_wrong_part_stops_the_router_at_start(pool: dict[str, Any], words: list[str]) -> None:
    config = msgspec.convert(pool, PoolConfig)
    with pytest.raises(ConfigError) as caught:
        build_parts(config, "pools[0]")
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
