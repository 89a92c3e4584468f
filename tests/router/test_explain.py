"""Explain says what the decision does, and nothing of the prompt."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.router.fleet import chat, router_of, words
from warmlane.router.types import LoadSnapshot, Outcome, ReplicaState


def by_name(
    router: Any, request: Any, now: float = 5.0, rand: int = 3
) -> tuple[Any, dict[str, Any]]:
    found = router.explain(request, now, rand)
    plain = msgspec.json.decode(msgspec.json.encode(found))
    return found, {row["replica"]: row for row in plain["replicas"]}


def test_the_table_is_the_decision() -> None:
    router = router_of(4)
    request = chat(words(2000), model="m")
    pool = router.pools["default"]
    first = router.decide(request, 0.0, 1)
    router.sent(first.ticket, 2, 0.0)
    pool.update_load(1, LoadSnapshot(taken_at=2.0, waiting=3, kv_usage=0.5))
    pool.set_state(3, ReplicaState.EJECTED, "probe")
    found, rows = by_name(router, request)
    decision = router.decide(request, 5.0, 3)
    order = sorted(
        (row for row in rows.values() if row["order"] is not None), key=lambda r: r["order"]
    )
    assert [pool.by_name(row["replica"]).slot for row in order] == list(decision.choices)  # type: ignore[union-attr]
    assert [row["hit_tokens"] for row in order] == list(decision.hit_tokens)
    assert found.view == decision.view == "approximate" and found.unit == "text"
    assert found.prompt_tokens == decision.prompt_tokens
    for row in order:
        assert row["total"] == pytest.approx(sum(line["product"] for line in row["scores"]))
        assert row["removed_by"] == ""
    assert [row["total"] for row in order] == sorted((row["total"] for row in order), reverse=True)
    assert rows["r3"]["removed_by"] == "ready" and rows["r3"]["state"] == "EJECTED"
    assert rows["r3"]["total"] is None and rows["r3"]["order"] is None
    assert rows["r2"]["hit_blocks"] > 60 and rows["r2"]["trust"] == 1.0
    assert (
        rows["r1"]["load_age_s"] == 3.0
        and rows["r1"]["waiting"] == 3
        and rows["r0"]["load_age_s"] is None
    )


def test_each_term_of_the_price_is_told() -> None:
    router = router_of(3)
    first = router.decide(chat(words(2000), model="m"), 0.0, 1)
    router.sent(first.ticket, 2, 0.0)
    load = LoadSnapshot(taken_at=1.0, running=9, kv_usage=1.0, num_blocks=100, block_size=16)
    router.pools["default"].update_load(1, load)
    for now in (1.0, 2.0):
        router.maintain(now)
    _, rows = by_name(router, chat(words(2000), model="m"))
    terms = {name: row["price"] for name, row in rows.items()}
    assert terms["r2"]["line"] > 0 and "copy" not in terms["r2"]
    assert terms["r0"]["copy"] > terms["r2"]["own"] and "room" not in terms["r0"]
    assert terms["r1"]["room"] > 0
    prices = {name: sum(parts.values()) for name, parts in terms.items()}
    for name, row in rows.items():
        (score,) = [line["score"] for line in row["scores"] if line["scorer"] == "price"]
        assert score == pytest.approx(1 - prices[name] / max(prices.values()))


def test_what_was_learned_of_a_replica_is_told() -> None:
    router = router_of(3)
    price = router.lanes["default"].decider.price
    assert price is not None
    for slot, step_s in enumerate((0.01, 0.01, 0.03)):
        for running in range(40):
            price.streamed(slot, 101, 100 * step_s, (running, 0.0, 0.0))
    for now in (1.0, 2.0):
        router.maintain(now)
    _, rows = by_name(router, chat(words(2000), model="m"))
    learned = [rows[f"r{slot}"]["learned"] for slot in range(3)]
    assert [each["decode_factor"] for each in learned] == pytest.approx([1, 1, 3], rel=0.05)
    assert learned[2]["decode_s"] == pytest.approx(0.03, rel=0.05)
    assert "prefill_s" not in learned[2]
    assert rows["r2"]["price"]["decode"] > 0 and "decode" not in rows["r0"]["price"]


def test_nothing_is_reserved_and_nothing_said_of_the_prompt() -> None:
    router = router_of(2)
    secret = "the quick brown secret " * 100
    found, _ = by_name(router, chat(secret, model="m"))
    assert router.open_tickets == 0
    assert not any(router.pools["default"].ledger.requests)
    assert b"secret" not in msgspec.json.encode(found)


def test_nobody_eligible_is_explained_and_not_raised() -> None:
    router = router_of(2)
    for name in ("r0", "r1"):
        router.pools["default"].drain(name)
    found, rows = by_name(router, chat())
    assert "no replica" in found.error and found.removed["ready"] == 2
    assert {row["removed_by"] for row in rows.values()} == {"ready"}
    empty, rows = by_name(router_of(0), chat())
    assert empty.error and rows == {}


def test_failing_advice_is_explained() -> None:
    path = "tests.router.test_decide:Broken"
    router = router_of(2, scorers=["prefix_hit", {"name": path, "how": "nan"}])
    found, rows = by_name(router, chat(words(100)))
    assert path in found.fallback
    scores = {line["scorer"]: line["score"] for line in rows["r0"]["scores"]}
    assert scores == {"prefix_hit": 0.0, path: None}
    assert all(row["total"] is None for row in rows.values())


def test_round_robin_has_no_scores() -> None:
    router = router_of(2, policy="round-robin")
    found, rows = by_name(router, chat(words(100)))
    assert found.policy == "round-robin" and found.picker == "round_robin" and found.view == "none"
    assert all(row["scores"] == [] and row["total"] is None for row in rows.values())


def test_it_changes_no_later_decision() -> None:
    one, other = router_of(3), router_of(3)
    for turn in range(20):
        request = chat(words(400, turn % 5))
        other.explain(request, float(turn), turn)
        decisions = [router.decide(request, float(turn), turn) for router in (one, other)]
        for router, decision in zip((one, other), decisions, strict=True):
            router.sent(decision.ticket, decision.choices[0], float(turn))
            if turn % 3:
                router.close(decision.ticket, Outcome(), turn + 0.5)
        assert decisions[0] == decisions[1]
