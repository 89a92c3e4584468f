"""A new config in a running router: what stays keeps its state, what goes ends its requests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.router.fleet import chat, idle, words
from warmlane.router.config import Config
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError, RequestError
from warmlane.router.types import ModelList, Outcome, ReplicaSpec


def pool(name: str, *replicas: str, **more: Any) -> dict[str, Any]:
    urls = [{"url": f"http://{each}:80", "name": each} for each in replicas]
    return {"name": name, "models": [name], "replicas": urls, **more}


def config(*pools: dict[str, Any], **more: Any) -> Config:
    return from_data({"pools": list(pools), **more})


def test_pools_come_and_go_and_the_others_keep_everything() -> None:
    router = Router(config(pool("a", "a0", "a1"), pool("b", "b0")))
    prompt = chat(words(4000), model="a")
    first = router.decide(prompt, 0.0, 1)
    router.sent(first.ticket, first.choices[0], 0.0)
    lane, kept = router.lanes["a"], router.pools["a"]
    old = router.decide(chat(model="b"), 0.0, 1)
    gone = router.pools["b"]
    assert router.reload(config(pool("c", "c0"), pool("a", "a0", "a1"))) == [gone]
    assert list(router.pools) == ["c", "a"] == list(router.lanes)
    assert router.lanes["a"] is lane and router.pools["a"] is kept
    again = router.decide(prompt, 1.0, 1)
    assert again.choices[0] == first.choices[0] and again.hit_tokens[0] > 3000
    new = router.decide(chat(model="c"), 1.0, 1)
    assert new.pool == "c" and len({each.ticket for each in (first, old, again, new)}) == 4
    with pytest.raises(RequestError) as unknown:
        router.decide(chat(model="b"), 1.0, 1)
    assert unknown.value.status == 404
    # what is under way in the pool that is gone goes on as if nothing had happened
    router.maintain(1.0)
    assert router.first_token(old.ticket, 2.0) == 2.0
    router.progress(old.ticket, 7)
    assert router.rest(old.ticket, 2.0) == (0,)
    assert router.open_tickets == 4
    assert router.close(old.ticket, Outcome(output_tokens=9, cached_tokens=0), 2.0)
    for decision in (first, again, new):
        assert router.close(decision.ticket, Outcome(), 2.0)
    assert gone.ledger.open_tickets == 0
    idle(router)


def test_news_of_a_pool_that_is_gone_may_come_late() -> None:
    router = Router(config(pool("a", "a0"), pool("b", "b0")))
    old = router.decide(chat(model="b"), 0.0, 1)
    router.reload(config(pool("a", "a0")))
    router.maintain(0.0)
    assert router.close(old.ticket, Outcome(), 0.0)
    router.maintain(0.0)  # from here on the pool is forgotten
    router.reload(config(pool("a", "a0"), pool("b", "b1")))
    new = router.decide(chat(model="b"), 0.0, 1)
    router.sent(old.ticket, 0, 0.0)
    router.moved(old.ticket, 0, 0.0)
    router.progress(old.ticket, 3)
    assert router.first_token(old.ticket, 0.0) == -1.0
    assert router.rest(old.ticket, 0.0) == ()
    assert router.close(old.ticket, Outcome(), 0.0) is False
    assert router.open_tickets == 1
    assert router.close(new.ticket, Outcome(), 0.0) is True
    idle(router)


def test_a_forgotten_ticket_of_a_pool_that_is_gone_goes_by_age() -> None:
    router = Router(config(pool("a", "a0"), pool("b", "b0"), timeouts={"ticket_s": 10.0}))
    router.decide(chat(model="b"), 0.0, 1)
    router.reload(config(pool("a", "a0"), timeouts={"ticket_s": 10.0}))
    router.maintain(5.0)
    assert router.open_tickets == 1
    router.maintain(20.0)
    assert router.open_tickets == 0
    assert router.metrics.leaked == 1


def test_parts_are_built_anew_where_they_changed_and_the_view_stays() -> None:
    router = Router(config(pool("a", "a0", "a1"), pool("b", "b0", "b1", policy="round-robin")))
    prompt = chat(words(4000), model="a")
    first = router.decide(prompt, 0.0, 1)
    router.sent(first.ticket, first.choices[0], 0.0)
    other = router.lanes["b"].decider
    router.reload(
        config(
            pool(
                "a", "a0", "a1", scorers=["prefix_hit"], filters=[{"name": "labels", "match": {}}]
            ),
            pool("b", "b0", "b1", policy="round-robin"),
        )
    )
    assert router.lanes["b"].decider is other, "its turn goes on"
    told = router.explain(prompt, 0.0)
    assert [line.scorer for line in told.replicas[0].scores] == ["prefix_hit"]
    assert told.replicas[first.choices[0]].hit_tokens > 3000
    router.reload(config(pool("a", "a0", "a1", policy="least-requests"), pool("b", "b0", "b1")))
    second = router.decide(prompt, 0.0, 1)
    assert second.choices[0] != first.choices[0], "the one without a request"
    assert router.lanes["b"].decider is not other
    for decision in (first, second):
        router.close(decision.ticket, Outcome(), 0.0)
    idle(router)


@pytest.mark.parametrize("field", ["capacity_tokens", "tier_tokens"])
def test_a_larger_cache_is_followed(field: str) -> None:
    router = Router(config(pool("a", "a0", capacity_tokens=200)))
    router.reload(config(pool("a", "a0", **{"capacity_tokens": 200, field: 20_000})))
    for seed in range(3):
        decision = router.decide(chat(words(1000, seed), model="a"), 0.0, 1)
        router.sent(decision.ticket, 0, 0.0)
        router.close(decision.ticket, Outcome(), 0.0)
    assert max(router.decide(chat(words(1000, 0), model="a"), 1.0, 1).hit_tokens) > 900


def test_names_zone_and_capacity_follow() -> None:
    router = Router(config(pool("a", "a0"), pool("b", "b0"), models=[{"name": "x", "pool": "a"}]))
    assert router.decide(chat(model="x"), 0.0, 1).pool == "a"
    split = [{"pool": "b", "model": "b"}]
    router.reload(
        config(
            pool("a", "a0", models=["other"]),
            pool("b", "b0", capacity_tokens=64),
            models=[{"name": "x", "split": split}],
            zone="z",
        )
    )
    decision = router.decide(chat(words(3000), model="x"), 0.0, 1)
    assert (decision.pool, decision.model) == ("b", "b")
    assert router.decide(chat(model="other"), 0.0, 1).pool == "a"
    assert {entry["id"] for entry in router.models()} == {"b", "other", "x"}
    assert router.lanes["a"].decider.candidates.zone == "z"
    router.sent(decision.ticket, 0, 0.0)
    assert 0 < router.lanes["b"].view.blocks <= 3, "64 tokens"
    # a new pool is watched: what its replicas list counts at once
    router.reload(config(pool("a", "a0"), {"name": "c", "replicas": ["http://c0:80"]}))
    router.pools["c"].set_models(0, ModelList(models=frozenset({"late"})))
    assert router.decide(chat(model="late"), 0.0, 1).pool == "c"


@pytest.mark.parametrize(
    "bad",
    [
        [pool("a", "a0", policy="nonsense")],
        [pool("a", "a0"), pool("c", "c0", scorers=["nonsense"])],
        [pool("a", "a0", policy="round-robin"), pool("c", "c0", picker="nonsense")],
    ],
)
def test_a_bad_config_changes_nothing(bad: list[dict[str, Any]]) -> None:
    good = config(pool("a", "a0"), pool("b", "b0"))
    router = Router(good)
    before = router.lanes["a"].decider
    with pytest.raises(ConfigError):
        router.reload(config(*bad))
    assert list(router.pools) == ["a", "b"] and router.lanes["a"].decider is before
    assert router.config.pools[0].policy == "default"
    assert router.decide(chat(model="b"), 0.0, 1).pool == "b"


def test_replicas_of_pools_that_stay_are_left_to_the_feeds() -> None:
    router = Router(config(pool("a", "a0")))
    router.pools["a"].add(ReplicaSpec(url="http://found:1"), 0.0)
    router.reload(config(pool("a", "a9")))
    assert {replica.name for replica in router.pools["a"]} == {"a0", "found:1"}
