"""Decisions: advice that fails loses no request; cached masks never outlive the pool's version."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.router.fleet import chat, router_of, words
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.errors import NoReplica
from warmlane.router.interfaces import Candidates
from warmlane.router.types import ModelList, Outcome, ReplicaSpec, Request


class Broken:
    """A scorer that does what `how` says."""

    def __init__(self, how: str) -> None:
        self.how = how

    def score(self, request: Request, candidates: Candidates) -> Any:
        good = [0.5] * len(candidates)
        if self.how == "raise":
            raise KeyError("no such thing")
        if self.how == "short":
            return good[1:]
        if self.how == "nan":
            return [math.nan, *good[1:]]
        if self.how == "above":
            return [1.5, *good[1:]]
        if self.how == "index":
            return [good[len(good)]]
        if self.how == "type":
            return 3
        return good


class Named:
    """1 for one replica; a plain list, as a user writes it."""

    def __init__(self, best: str) -> None:
        self.best = best

    def score(self, request: Request, candidates: Candidates) -> Sequence[float]:
        return [1.0 if each and each.name == self.best else 0.0 for each in candidates.replicas]


@pytest.mark.parametrize("how", ["raise", "short", "nan", "above", "index", "type"])
def test_failing_advice_falls_back_to_least_inflight_and_says_so(how: str, caplog: Any) -> None:
    router = router_of(3, scorers=["prefix_hit", {"name": f"{__name__}:Broken", "how": how}])
    ledger = router.pools["default"].ledger
    for slot in (0, 0, 2):
        ledger.open(slot, 10, 10, 0.0)
    with caplog.at_level(logging.WARNING):
        decision = router.decide(chat(), 0.0, 1)
        again = router.decide(chat(), 0.0, 2)
    assert decision.choices == (1, 2, 0) and decision.fallback
    assert again.choices[2] == 0 and again.fallback == decision.fallback
    cells = router.metrics.counts["warmlane_fallbacks_total"]
    assert cells == {("default", f"{__name__}:Broken"): 2}
    assert "Broken" in decision.fallback and "no such thing" not in decision.fallback
    assert len(caplog.records) == 1, "one line per change, not one per request"


class Guard:
    """A filter that fails."""

    def __init__(self, static: bool) -> None:
        self.static = static

    def keep(self, request: Request, candidates: Candidates, mask: Any) -> int:
        raise ValueError("secret of a tenant")


@pytest.mark.parametrize("static", [True, False])
def test_a_filter_that_fails_lets_nobody_through(static: bool, caplog: Any) -> None:
    router = router_of(2, filters=[{"name": f"{__name__}:Guard", "static": static}])
    with pytest.raises(NoReplica) as caught:
        router.decide(chat(), 0.0, 1)
    assert caught.value.status == 503 and "Guard" in caught.value.message
    assert "secret" not in caught.value.message + caplog.text
    assert router.open_tickets == 0


def test_good_advice_from_a_list_decides() -> None:
    router = router_of(5, scorers=[{"name": f"{__name__}:Named", "best": "r3"}])
    decision = router.decide(chat(), 0.0, 1)
    assert decision.choices[0] == 3 and decision.fallback == ""
    assert len(decision.choices) == 5 == len(decision.hit_tokens)


def test_at_most_five_choices() -> None:
    assert len(router_of(9).decide(chat(), 0.0, 1).choices) == 5


def test_the_static_mask_follows_the_pool() -> None:
    router = router_of(2)
    pool = router.pools["default"]
    assert len(router.decide(chat(model="m"), 0.0, 1).choices) == 2
    pool.set_models(0, ModelList(models=frozenset({"other"})))
    assert router.decide(chat(model="m"), 0.0, 1).choices == (1,)
    slot = pool.add(ReplicaSpec(url="http://new:1"), 0.0)
    assert set(router.decide(chat(model="m"), 0.0, 1).choices) == {1, slot}
    pool.drain("r1")
    assert router.decide(chat(model="m"), 0.0, 1).choices == (slot,)


def test_the_table_of_masks_is_bounded() -> None:
    router = router_of(2)
    for i in range(3000):
        router.decide(chat(model=f"client-made-this-up-{i}"), 0.0, i)
    decider = router.lanes["default"].decider
    assert len(decider._masks) <= 1024


def test_no_replica_at_all() -> None:
    with pytest.raises(NoReplica) as caught:
        router_of(0).decide(chat(), 0.0, 1)
    assert caught.value.status == 503 and "0 replicas" in caught.value.message


def test_a_hit_is_followed_and_told_in_tokens() -> None:
    router = router_of(4)
    request = chat(words(2000), model="m")
    first = router.decide(request, 0.0, 1)
    assert first.hit_tokens == (0, 0, 0, 0) and first.view == "approximate"
    router.sent(first.ticket, first.choices[2], 0.0)
    router.close(first.ticket, Outcome(), 1.0)
    second = router.decide(request, 2.0, 5)
    assert second.choices[0] == first.choices[2]
    assert (
        second.hit_tokens[0] == pytest.approx(2000, rel=0.03) and second.hit_tokens[1:] == (0,) * 3
    )
    assert second.prompt_tokens == pytest.approx(2000, rel=0.03)


def test_a_request_without_a_prompt_is_routed_by_load() -> None:
    router = router_of(2)
    busy = router.decide(chat(words(500)), 0.0, 1).choices[0]
    decision = router.decide(chat(None), 0.0, 1)
    assert decision.view == "none" and decision.prompt_tokens == 0
    assert decision.choices == (1 - busy, busy)


def test_token_prompts_have_a_view_of_their_own() -> None:
    router = router_of(3)
    tokens = bytes(range(256)) * 16  # 1,024 ids
    request = chat(None, tokens=tokens)
    first = router.decide(request, 0.0, 1)
    router.sent(first.ticket, 1, 0.0)
    second = router.decide(request, 0.0, 2)
    assert second.prompt_tokens == 1024
    assert dict(zip(second.choices, second.hit_tokens, strict=True))[1] == 1023, "never the last"


def test_the_default_stays_in_its_zone_until_leaving_it_saves_more() -> None:
    zones = ("a", "b", "a", "b", "")
    urls = [
        {"url": f"http://r{slot}:8000", "name": f"r{slot}", "zone": zone}
        for slot, zone in enumerate(zones)
    ]
    router = Router(from_data({"pools": [{"replicas": urls}], "zone": "a"}))
    opened = [router.decide(chat(words(300, seed)), 0.0, seed) for seed in range(3)]
    assert {each.choices[0] for each in opened} == {0, 2, 4}, "near or unknown: all alike"
    ledger = router.pools["default"].ledger
    for slot in (0, 2, 4):
        ledger.open(slot, 20_000, 20_000, 0.0)
    assert router.decide(chat(words(300, 9)), 0.0, 9).choices[0] in (1, 3)
    router.pools["default"].relabel(ReplicaSpec(url="http://r2:8000", name="r2", zone="b"))
    ledger.open(0, 20_000, 20_000, 0.0)
    for slot in (1, 3):
        ledger.open(slot, 20_000, 20_000, 0.0)
    found = router.decide(chat(words(300, 10)), 0.0, 10)
    assert found.choices[0] == 4, "what has moved away is as far as the others there"
