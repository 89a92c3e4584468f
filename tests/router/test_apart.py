"""Routers that cannot hear each other: the same prompt goes the same way through each of them."""

from __future__ import annotations

import msgspec
import pytest

from warmlane.router.apart import Apart
from warmlane.router.config import Config, PoolConfig
from warmlane.router.core import Router
from warmlane.router.types import Kind, Outcome, ReplicaSpec, Request

URLS = [f"http://10.0.0.{n}:8000" for n in range(8)]


def router(order: list[str], *, scorers: bool = False) -> Router:
    specs = [ReplicaSpec(url=url) for url in order]
    policy = PoolConfig(models=["m"], replicas=specs, picker="best" if scorers else "")
    return Router(Config(pools=[policy]))


def learn(each: Router, apart: Apart, routers: int) -> None:
    """Conversations, so that the router knows that prompts come again."""
    each.maintain(0.0)
    for turn in range(60):
        prompt = b"%d" % (turn % 3) * 9000
        request = Request(kind=Kind.COMPLETIONS, model="m", prompt=prompt)
        decision = each.decide(request, float(turn), 1)
        each.sent(decision.ticket, decision.choices[0], float(turn))
        each.close(decision.ticket, Outcome(), float(turn))
    each.maintain(60.0)
    apart.tick(routers)
    each.maintain(61.0)


def homes(each: Router, scorer_by_scorer: bool) -> list[str]:
    """Where prompts that nobody saw go, each with another `rand`."""
    found = []
    for number in range(40):
        request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"<%d>" % number * 3000)
        if scorer_by_scorer:
            request = msgspec.structs.replace(request, subset=frozenset(url[7:] for url in URLS))
        decision = each.decide(request, 61.0, number * 7919 + len(found))
        replica = each.pools["default"].replicas[decision.choices[0]]
        assert replica is not None
        found.append(replica.endpoint)
        each.close(decision.ticket, Outcome(status="error"), 61.0)
    return found


@pytest.mark.parametrize("scorer_by_scorer", [False, True])
def test_the_head_of_a_prompt_decides_among_equals(scorer_by_scorer: bool) -> None:
    orders = [URLS, URLS[::-1], URLS[3:] + URLS[:3]]
    found = []
    for order in orders:
        each = router(order)
        learn(each, Apart(each), 3)
        found.append(homes(each, scorer_by_scorer))
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 4  # other prompts go elsewhere


def test_one_router_decides_as_before() -> None:
    alone, told = router(URLS), router(URLS)
    apart = Apart(told)
    for each in (alone, told):
        learn(each, apart if each is told else Apart(each), 1)
    assert homes(alone, False) == homes(told, False)
    apart.tick(4)
    assert told.lanes["default"].apart
    damped = homes(told, False)
    apart.tick(1)
    lane = told.lanes["default"]
    assert not lane.apart and lane.decider.candidates.homes is None
    assert homes(told, False) != damped


def test_a_pool_that_changes_is_followed() -> None:
    each = router(URLS[:2])
    apart = Apart(each)
    learn(each, apart, 2)
    pool = each.pools["default"]
    pool.add(ReplicaSpec(url=URLS[5]), 61.0)
    homes(each, False)  # before the next tick ties go by slot
    homes(each, True)
    apart.tick(2)
    column = each.lanes["default"].decider.candidates.homes
    assert column is not None and len(column) == 3 and len(set(column)) == 3


def test_a_long_line_still_sends_elsewhere() -> None:
    """Equals are those within twice the prompt's own work: a hot spot is left."""
    each = router(URLS[:2])
    learn(each, Apart(each), 2)
    prompt = b"the same " * 1000
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=prompt)
    chosen = set()
    for number in range(30):
        decision = each.decide(request, 61.0, number)
        chosen.add(decision.choices[0])
    assert chosen == {0, 1}
