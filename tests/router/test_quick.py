"""The compiled default mix decides as the scorers do one by one, whose path `explain` takes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.router.fleet import chat, idle, router_of, words
from warmlane.router.core import Router
from warmlane.router.errors import NoReplica
from warmlane.router.types import LoadSnapshot, ModelList, Outcome, ReplicaState, Request

MIXES: list[dict[str, Any]] = [
    {},
    {
        "scorers": [
            {"name": "prefix_hit", "weight": 1.5},
            {"name": "inflight_tokens", "weight": 0.3},
            {"name": "running_requests", "weight": 2},
            {"name": "spread", "weight": 3, "rate": 0.5, "limit_tokens": 900.0},
            {"name": "kv_usage", "weight": 0.7},
            {"name": "lora", "weight": 4},
        ]
    },
]


def explained(router: Router, request: Request, now: float, rand: int) -> tuple[list[int], Any]:
    """Slots best first and totals by slot, scorer by scorer."""
    lines = router.explain(request, now, rand)
    assert not lines.fallback and not lines.error
    slots = {line.order: int(line.replica[1:]) for line in lines.replicas if line.order is not None}
    totals = {
        int(line.replica[1:]): line.total for line in lines.replicas if line.total is not None
    }
    return [slots[place] for place in sorted(slots)], totals


def disturb(router: Router, rand: random.Random, now: float) -> None:
    """What happens to a fleet between two decisions."""
    pool = router.pools["default"]
    slot = rand.randrange(len(pool))
    event = rand.randrange(6)
    if event == 0:
        state = rand.choice([ReplicaState.READY, ReplicaState.READY, ReplicaState.EJECTED])
        pool.set_state(slot if slot else 1, state)
    elif event <= 2:
        load = LoadSnapshot(
            taken_at=now,
            waiting=rand.randrange(4),
            running=rand.randrange(9),
            kv_usage=rand.random(),
        )
        pool.update_load(slot, load)
    elif event == 3:
        router.maintain(now)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("seed", range(3))
def test_same_order_and_same_totals_as_one_by_one(mix: dict[str, Any], seed: int) -> None:
    rand, now = random.Random(seed), 0.0
    router = router_of(7, **mix)
    lane = router.lanes["default"]
    heads, opened = [words(400, n) for n in range(5)], []
    for step in range(250):
        now += rand.expovariate(4.0)
        disturb(router, rand, now)
        text = rand.choice(heads)[: rand.randrange(4000)] + words(rand.randrange(200), step + 9)
        request = rand.choice([chat(text), chat(text), chat(None)])
        number = rand.getrandbits(64)
        order, totals = explained(router, request, now, number)
        decision = router.decide(request, now, number)
        assert list(decision.choices) == order[: len(decision.choices)], step
        assert lane.decider.mix is not None
        assert totals == {
            slot: total for slot, total in enumerate(lane.decider.mix.totals) if slot in totals
        }
        router.sent(decision.ticket, decision.choices[0], now)
        opened.append((decision, len(text) // 5))
        if rand.random() < 0.7:
            done, tokens = opened.pop(rand.randrange(len(opened)))
            if rand.random() < 0.8:
                router.first_token(done.ticket, now)
            outcome = Outcome(prompt_tokens=tokens, cached_tokens=rand.randrange(tokens + 1))
            router.close(done.ticket, outcome, now)
    for decision, _ in opened:
        router.close(decision.ticket, Outcome(status="cancelled"), now)
    idle(router)


@pytest.mark.parametrize(
    "pool",
    [
        {"policy": "least-requests"},
        {"policy": "round-robin"},
        {"scorers": ["prefix_hit", "inflight_tokens"]},
        {"picker": "random"},
        {"filters": [{"name": "not_saturated"}]},
    ],
)
def test_any_other_mix_runs_part_by_part(pool: dict[str, Any]) -> None:
    router = router_of(3, **pool)
    assert router.lanes["default"].decider.mix is None
    decision = router.decide(chat(words(100)), 0.0, 1)
    assert len(decision.choices) == 3
    router.close(decision.ticket, Outcome(), 1.0)


def test_an_adapter_and_a_subset_take_the_long_way() -> None:
    router = router_of(3)
    pool = router.pools["default"]
    for slot in range(3):
        adapters = {"tune": "base"} if slot == 1 else {}
        pool.set_models(slot, ModelList(models=frozenset({"base"}), adapters=adapters))
    assert router.decide(chat(words(100), model="tune"), 0.0, 1).choices == (1,)
    request = chat(words(100), model="base", subset=frozenset({"r2"}))
    assert router.decide(request, 0.0, 1).choices == (2,)
    assert len(router.decide(chat(words(100), model="base"), 0.0, 1).choices) == 3


def test_nobody_left_says_so() -> None:
    router = router_of(2)
    router.pools["default"].drain("r0")
    router.pools["default"].drain("r1")
    with pytest.raises(NoReplica) as caught:
        router.decide(chat("x"), 0.0, 1)
    assert caught.value.removed == {"ready": 2, "served": 0}
