"""Nobody ready is left: who is asked all the same, in which order, and who never is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.router.fleet import chat, idle, router_of, words
from warmlane.router.core import Router
from warmlane.router.decide import LAST_RESORT
from warmlane.router.errors import NoReplica
from warmlane.router.types import LoadSnapshot, ModelList, Outcome, ReplicaSpec, ReplicaState

EJECTED, JOINING, READY = ReplicaState.EJECTED, ReplicaState.JOINING, ReplicaState.READY


def states(router: Router, *wanted: ReplicaState) -> None:
    for slot, state in enumerate(wanted):
        router.pools["default"].set_state(slot, state)


@pytest.mark.parametrize("policy", ["default", "round-robin", "least-requests"])
def test_ejected_ones_serve_when_nobody_is_ready_and_joining_ones_after_them(policy: str) -> None:
    router = router_of(4, policy=policy)
    states(router, JOINING, EJECTED, JOINING, EJECTED)
    ledger = router.pools["default"].ledger
    ledger.open(1, 10, 10, 0.0)
    decision = router.decide(chat(), 0.0, 0)
    assert decision.choices == (3, 1, 0, 2)
    assert decision.fallback == LAST_RESORT
    assert router.metrics.counts["warmlane_last_resort_total"] == {("default", "decision"): 1}
    assert router.close(decision.ticket, Outcome(), 1.0)
    states(router, READY)
    well = router.decide(chat(), 0.0, 0)
    assert well.choices == (0,) and well.fallback == ""


def test_turns_are_taken_among_equals() -> None:
    router = router_of(8)
    states(router, *[EJECTED] * 8)
    first = set()
    for turn in range(8):
        decision = router.decide(chat(), 0.0, turn)
        first.add(decision.choices[0])
        router.close(decision.ticket, Outcome(), 0.0)
    assert len(first) == 8


def test_what_an_ejected_replica_holds_is_still_told() -> None:
    router = router_of(2)
    prompt = chat(words(4000))
    decision = router.decide(prompt, 0.0, 0)
    slot = decision.choices[0]
    router.sent(decision.ticket, slot, 0.0)
    router.close(decision.ticket, Outcome(), 0.0)
    states(router, EJECTED, EJECTED)
    again = router.decide(prompt, 1.0, 0)
    assert dict(zip(again.choices, again.hit_tokens, strict=True))[slot] > 3000
    assert again.view == "approximate"


def test_drained_sleeping_and_paused_ones_are_never_asked() -> None:
    router = router_of(4)
    pool = router.pools["default"]
    pool.drain("r0")
    pool.set_state(1, EJECTED, "probe: paused", unwilling=True)
    pool.update_load(2, LoadSnapshot(taken_at=0.0, asleep=True))
    pool.set_state(2, EJECTED)
    pool.set_state(3, READY)
    decision = router.decide(chat(), 0.0, 0)
    assert decision.choices == (3,)
    assert router.rest(decision.ticket, 0.0) == (3,)
    pool.set_state(3, EJECTED)
    assert router.decide(chat(), 0.0, 0).choices == (3,)
    pool.remove("r3", 0.0)
    with pytest.raises(NoReplica):
        router.decide(chat(), 0.0, 0)
    pool.set_state(1, EJECTED, "probe: status 500")  # awake, only ill
    assert router.decide(chat(), 0.0, 0).choices == (1,)


def test_what_must_hold_holds() -> None:
    """Model and adapter served, the client's subset, and every filter of the config."""
    router = router_of(0, filters=[{"name": "labels", "match": {"tier": "a"}}])
    pool = router.pools["default"]
    for number in range(5):
        labels = {"tier": "b" if number == 4 else "a"}
        pool.add(ReplicaSpec(url=f"http://r{number}:80", name=f"r{number}", labels=labels), 0.0)
    both = ModelList(models=frozenset({"m"}), adapters={"ad": "m"})
    for slot in (0, 2, 4):
        pool.set_models(slot, both)
    pool.set_models(1, ModelList(models=frozenset({"m"})))
    pool.set_models(3, ModelList(models=frozenset({"other"})))
    states(router, *[EJECTED] * 5)
    assert set(router.decide(chat(model="m"), 0.0, 0).choices) == {0, 1, 2}
    assert set(router.decide(chat(model="ad"), 0.0, 0).choices) == {0, 2}
    subset = frozenset({"r2", "r3"})
    assert router.decide(chat(model="m", subset=subset), 0.0, 0).choices == (2,)
    # a ready one elsewhere does not help a request that must stay within its subset
    states(router, READY)
    decision = router.decide(chat(model="m", subset=subset), 0.0, 0)
    assert decision.choices == (2,)
    assert router.rest(decision.ticket, 0.0) == (2,)
    with pytest.raises(NoReplica) as none:
        router.decide(chat(model="m", subset=frozenset({"r4"})), 0.0, 0)
    assert none.value.status == 503


def test_a_full_fleet_stays_full() -> None:
    """429 is an answer: what is ill does not get the work that the others have no room for."""
    router = router_of(2, filters=[{"name": "not_saturated", "requests": 1}])
    states(router, READY, EJECTED)
    router.decide(chat(), 0.0, 0)
    with pytest.raises(NoReplica) as none:
        router.decide(chat(), 0.0, 0)
    assert none.value.status == 429
    assert "default" not in str(router.metrics.counts["warmlane_last_resort_total"])


def test_the_rest_is_told_in_order_and_without_the_ill_where_asked() -> None:
    router = router_of(9)
    states(router, *[READY] * 6, JOINING, EJECTED, EJECTED)
    decision = router.decide(chat(), 0.0, 0)
    rest = router.rest(decision.ticket, 0.0)
    ready = [slot for slot in range(6) if slot != decision.choices[0]]
    assert set(rest) == set(ready)  # five at most, the one with the request last
    states(router, *[READY] * 2, *[EJECTED] * 2, *[JOINING] * 5)
    rest = router.rest(decision.ticket, 0.0)
    assert set(rest[:2]) == {0, 1} and set(rest[2:4]) == {2, 3} and rest[4] > 3
    assert set(router.rest(decision.ticket, 0.0, ready_only=True)) == {0, 1}
    router.moved(decision.ticket, rest[4], 0.0)
    assert router.close(decision.ticket, Outcome(output_tokens=3, cached_tokens=0), 0.0)
    assert router.rest(decision.ticket, 0.0) == ()
    idle(router)


def test_the_rest_leaves_a_lost_zone_to_the_end() -> None:
    """Of the same state, however idle its replicas look: nothing is open on what is dead."""
    router = router_of(0)
    pool = router.pools["default"]
    for number in range(8):
        zone = "a" if number < 6 else "b"
        pool.add(ReplicaSpec(url=f"http://r{number}:80", name=f"r{number}", zone=zone), 0.0)
    decision = router.decide(chat(), 0.0, 0)
    for slot in (6, 7):
        pool.ledger.open(slot, 100, 100, 0.0)
    assert not {6, 7} & set(router.rest(decision.ticket, 0.0))
    rest = router.rest(decision.ticket, 0.0, avoid=frozenset("a"))
    assert set(rest[:2]) == {6, 7} and len(rest) == 5
    assert router.rest(decision.ticket, 0.0, tried=frozenset(range(5))) == (5, *sorted(rest[:2]))
    states(router, *[READY] * 6, EJECTED, EJECTED)
    assert not {6, 7} & set(router.rest(decision.ticket, 0.0, avoid=frozenset("a")))


class Guard:
    """A filter that fails when it is told to."""

    static = False
    fails = False

    def keep(self, request: Any, candidates: Any, mask: Any) -> int:
        if Guard.fails:
            raise ValueError
        return 0


def test_a_filter_that_fails_leaves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    router = router_of(2, filters=[f"{__name__}:Guard"])
    decision = router.decide(chat(), 0.0, 0)
    assert len(router.rest(decision.ticket, 0.0)) == 2
    monkeypatch.setattr(Guard, "fails", True)
    assert router.rest(decision.ticket, 0.0) == ()
    states(router, EJECTED, EJECTED)
    with pytest.raises(NoReplica):
        router.decide(chat(), 0.0, 0)


def test_it_is_explained() -> None:
    router = router_of(2)
    states(router, EJECTED, JOINING)
    told = router.explain(chat(), 0.0)
    assert told.error == "" and told.fallback == LAST_RESORT
    assert [(line.order, line.removed_by) for line in told.replicas] == [(0, "ready"), (1, "ready")]
    assert told.removed == {"ready": 2, "served": 0}
