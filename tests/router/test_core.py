"""The router as a whole: tickets that cannot leak, what answers teach."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.router.fleet import TURN, chat, config_of, idle, router_of, words
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.decide import LAST_RESORT
from warmlane.router.errors import NoReplica
from warmlane.router.index import BLOCK_BYTES
from warmlane.router.types import (
    Decision,
    LoadSnapshot,
    Outcome,
    ReplicaSpec,
    ReplicaState,
)

SRC = Path(__file__).resolve().parents[2] / "src"
STATUSES = st.sampled_from(["ok", "error", "cancelled", "aborted"])


class Tickets(RuleBasedStateMachine):
    """Any order of events, also late, repeated and missing ones, returns the columns to zero."""

    def __init__(self) -> None:
        super().__init__()
        pools = [{"name": name, "replicas": [f"{name}{i}:1" for i in range(3)]} for name in "ab"]
        models = [{"name": name, "pool": name} for name in "ab"]
        self.router = Router(
            from_data({"pools": pools, "models": models, "timeouts": {"ticket_s": 50}})
        )
        self.now = 0.0
        self.open: list[Decision] = []
        self.closed: list[Decision] = []
        self.names = 0
        self.opened_at: dict[int, float] = {}

    def some(self, data: Any, late: bool) -> Decision | None:
        among = self.open + (self.closed[-5:] if late else [])
        return data.draw(st.sampled_from(among)) if among else None

    @rule(model=st.sampled_from("ab"), size=st.integers(0, 3000), seed=st.integers(0, 3))
    def decide(self, model: str, size: int, seed: int) -> None:
        request = chat(words(size, seed) or None, model=model, max_tokens=size % 7 or None)
        pool = self.router.pools[model]
        ejected = {each.slot for each in pool if each.state is ReplicaState.EJECTED}
        try:
            decision = self.router.decide(request, self.now, size * TURN % 2**64)
        except NoReplica:
            assert not any(pool.ready) and not ejected
            return
        assert decision.pool == model
        if any(pool.ready):
            assert all(pool.ready[slot] for slot in decision.choices)
        else:
            assert set(decision.choices) <= ejected and decision.fallback == LAST_RESORT
        assert decision.ticket not in [other.ticket for other in self.open + self.closed]
        self.open.append(decision)
        self.opened_at[decision.ticket] = self.now

    @rule(data=st.data(), late=st.booleans())
    def event(self, data: Any, late: bool) -> None:
        decision = self.some(data, late)
        if decision is None:
            return
        slot = data.draw(st.sampled_from(decision.choices) | st.integers(0, 2))
        what = data.draw(st.sampled_from(["sent", "moved", "rest", "first", "progress"]))
        if what == "sent":
            self.router.sent(decision.ticket, slot, self.now)
        elif what == "moved":
            self.router.moved(decision.ticket, slot, self.now)
        elif what == "rest":
            for other in self.router.rest(decision.ticket, self.now):
                self.router.moved(decision.ticket, other, self.now)
        elif what == "first":
            self.router.first_token(decision.ticket, self.now)
        else:
            self.router.progress(decision.ticket, data.draw(st.integers(0, 5000)))

    @rule(data=st.data(), status=STATUSES, usage=st.booleans())
    def close(self, data: Any, status: str, usage: bool) -> None:
        decision = self.some(data, True)
        if decision is None:
            return
        told: dict[str, Any] = {}
        if usage:
            told = {"prompt_tokens": 100, "cached_tokens": 50, "output_tokens": 900}
        was_open = decision in self.open
        assert (
            self.router.close(decision.ticket, Outcome(status=status, **told), self.now) is was_open
        )
        if was_open:
            self.open.remove(decision)
            self.closed.append(decision)

    @rule(pool=st.sampled_from("ab"), data=st.data())
    def membership(self, pool: str, data: Any) -> None:
        members = list(self.router.pools[pool])
        what = data.draw(st.sampled_from(["add", "remove", "drain", "undrain", "eject", "ready"]))
        if what == "add" and len(self.router.pools[pool]) < 8:
            self.names += 1
            self.router.pools[pool].add(ReplicaSpec(url=f"http://n{self.names}:1"), self.now)
        elif members and what != "add":
            one = data.draw(st.sampled_from(members))
            if what == "eject":
                self.router.pools[pool].set_state(one.slot, ReplicaState.EJECTED)
            elif what == "ready":
                self.router.pools[pool].set_state(one.slot, ReplicaState.READY)
            elif what == "remove":
                self.router.pools[pool].remove(one.name, self.now)
            else:
                getattr(self.router.pools[pool], what)(one.name)

    @rule(seconds=st.floats(0, 30))
    def later(self, seconds: float) -> None:
        self.now += seconds
        old = [one for one in self.open if self.opened_at[one.ticket] < self.now - 50]
        self.router.maintain(self.now)
        for one in old:
            self.open.remove(one)
            self.closed.append(one)

    @invariant()
    def counts_agree(self) -> None:
        assert self.router.open_tickets == len(self.open)
        for name in "ab":
            ledger = self.router.pools[name].ledger
            assert sum(ledger.requests) == len([one for one in self.open if one.pool == name])

    def teardown(self) -> None:
        for decision in self.open:
            self.router.close(decision.ticket, Outcome(status="error"), self.now)
        idle(self.router)


Tickets.TestCase.settings = settings(max_examples=100, stateful_step_count=80, deadline=None)
TestTickets = Tickets.TestCase


def test_forgotten_tickets_go_by_age_and_are_counted() -> None:
    router = Router(
        msgspec.structs.replace(
            config_of(2),
            timeouts=msgspec.convert({"ticket_s": 10}, type(config_of(2).timeouts)),
        )
    )
    for turn in range(3):
        router.decide(chat(words(100)), float(turn), turn)
    router.maintain(11.5)
    assert router.open_tickets == 1 and router.metrics.leaked == 2
    router.maintain(99.0)
    assert router.metrics.leaked == 3
    idle(router)


def test_a_full_table_is_429_and_counted() -> None:
    config = from_data({"limits": {"tickets": 2}, "pools": [{"replicas": ["a:1"]}]})
    router = Router(config)
    first = router.decide(chat(), 0.0, 1)
    router.decide(chat(), 0.0, 1)
    with pytest.raises(NoReplica) as caught:
        router.decide(chat(), 0.0, 1)
    assert caught.value.status == 429
    assert router.metrics.counts["warmlane_limits_reached_total"] == {("tickets",): 1}
    router.close(first.ticket, Outcome(), 1.0)
    router.decide(chat(), 0.0, 1)


def test_a_burst_of_equal_prompts_does_not_herd() -> None:
    """Nothing is sent between the decisions: only the reservations can spread them."""
    router = router_of(4)
    firsts = [router.decide(chat(words(1000)), 0.0, 7).choices[0] for _ in range(40)]
    assert [firsts.count(slot) for slot in range(4)] == [10] * 4


def test_moved_carries_the_work_and_the_view_follows_sent() -> None:
    router = router_of(3)
    request = chat(words(1000))
    decision = router.decide(request, 0.0, 1)
    first, second = decision.choices[:2]
    ledger = router.pools["default"].ledger
    router.sent(decision.ticket, first, 0.0)
    router.moved(decision.ticket, second, 1.0)
    assert ledger.prefill_tokens[first] == 0 and ledger.requests[second] == 1
    assert ledger.prefill_tokens[second] == pytest.approx(1000, rel=0.01)
    router.sent(decision.ticket, second, 1.0)
    router.close(decision.ticket, Outcome(), 2.0)
    again = router.decide(request, 3.0, 1)
    hits = dict(zip(again.choices, again.hit_tokens, strict=True))
    assert hits[first] > 900 and hits[second] > 900
    router.close(again.ticket, Outcome(status="cancelled"), 4.0)
    idle(router)


def test_a_retry_on_a_choice_that_was_removed_and_swept_moves_nothing() -> None:
    router = router_of(3)
    pool = router.pools["default"]
    decision = router.decide(chat(words(500)), 0.0, 1)
    first, second = decision.choices[:2]
    pool.remove(f"r{second}", 0.0)
    router.maintain(1.0)
    assert pool.replicas[second] is None
    router.moved(decision.ticket, second, 1.0)
    router.sent(decision.ticket, second, 1.0)
    assert pool.ledger.requests[first] == 1 and pool.ledger.requests[second] == 0
    told = Outcome(prompt_tokens=500, cached_tokens=0, output_tokens=5)
    assert router.close(decision.ticket, told, 2.0)
    idle(router)


def test_first_token_releases_prefill_once() -> None:
    router = router_of(1)
    decision = router.decide(chat(words(1000)), 10.0, 1)
    ledger = router.pools["default"].ledger
    assert router.first_token(decision.ticket, 12.5) == 2.5
    assert ledger.prefill_tokens[0] == 0 and ledger.running[0] == 1
    assert router.first_token(decision.ticket, 13.0) == -1
    assert ledger.decode_tokens[0] > 0
    assert router.close(decision.ticket, Outcome(), 14.0)
    idle(router)
    assert sum(router.metrics.histograms["warmlane_ttft_seconds"]["default"][:-1]) == 1


def test_streams_that_end_well_teach_the_speed_of_decoding() -> None:
    router = router_of(2)
    price = router.lanes["default"].decider.price
    assert price is not None

    def heard(stream: bool = True, status: str = "ok", move: int = -1, **told: int) -> int:
        decision = router.decide(chat(words(500), model="m", stream=stream), 10.0, 0)
        slot = decision.choices[0]
        router.sent(decision.ticket, slot, 10.0)
        if move >= 0:
            router.moved(decision.ticket, 1 - slot, 10.5)
        router.first_token(decision.ticket, 11.0)
        before = [price.tempo(each)[4] for each in range(2)]
        router.close(decision.ticket, Outcome(status=status, **told), 13.0)
        after = [price.tempo(each)[4] for each in range(2)]
        assert after[1 - slot] == before[1 - slot]
        return after[slot] - before[slot]

    assert heard(output_tokens=101) == heard(events=101) == 1
    assert heard() == heard(output_tokens=5, events=101) == 0
    assert heard(stream=False, output_tokens=101) == heard(status="error", events=101) == 0
    assert heard(status="cancelled", events=101) == 0
    assert heard(move=1, output_tokens=101) == 0, "it was sent again: its times are of two replicas"
    base, _, _, count = price.tempo(0)[1:]
    assert count + price.tempo(1)[4] == 2
    assert base < 0.1 and idle(router) is None


def test_answers_teach_lengths_trust_and_output() -> None:
    router = router_of(1)
    lane = router.lanes["default"]
    before = lane.output_tokens
    for turn in range(300):
        request = chat(words(4000), model="m")
        decision = router.decide(request, float(turn), turn)
        router.sent(decision.ticket, 0, float(turn))
        router.first_token(decision.ticket, float(turn))
        # The engine counts twice as many tokens as assumed, and has none of them cached.
        told = Outcome(prompt_tokens=8000, cached_tokens=0, output_tokens=10)
        router.close(decision.ticket, told, turn + 0.5)
    assert lane.view.bytes_per_token.value == pytest.approx(2.0, rel=0.05)
    assert lane.view.trust.factors[0] < 0.3
    assert lane.output_tokens < before / 2
    decision = router.decide(chat(words(4000), model="m"), 400.0, 1)
    assert decision.prompt_tokens == pytest.approx(8000, rel=0.05)
    assert decision.hit_tokens[0] < 3000, "hits are corrected by trust"


def test_capacity_follows_the_engines_metrics() -> None:
    router = router_of(2)
    pool, lane = router.pools["default"], router.lanes["default"]

    def send(seed: int) -> None:
        decision = router.decide(chat(words(1000, seed)), 0.0, seed)
        router.sent(decision.ticket, 0, 0.0)
        router.close(decision.ticket, Outcome(), 0.0)

    send(0)
    pool.update_load(0, LoadSnapshot(taken_at=0.0, block_size=16, num_blocks=200))  # 3,200 tokens
    for seed in range(1, 8):
        send(seed)
    while router.maintain(1.0):
        pass
    assert lane.view.blocks <= 3200 / 32
    old = router.decide(chat(words(1000, 0)), 1.0, 1)
    new = router.decide(chat(words(1000, 7)), 1.0, 1)
    assert max(old.hit_tokens) == 0 and max(new.hit_tokens) > 900


def test_what_a_slower_tier_keeps_is_still_a_hit() -> None:
    """400 tokens of KV cache and 3,000 behind it hold three prompts of 1,000 tokens."""

    def oldest_hit(**given: int) -> int:
        router = router_of(1, capacity_tokens=400, **given)
        for seed in range(3):
            decision = router.decide(chat(words(1000, seed)), 0.0, seed)
            router.sent(decision.ticket, 0, 0.0)
            router.close(decision.ticket, Outcome(), 0.0)
        return max(router.decide(chat(words(1000, 0)), 1.0, 1).hit_tokens)

    assert oldest_hit() == 0
    assert oldest_hit(tier_tokens=8000) > 900


def test_an_engine_that_tells_no_capacity_is_warned_about_once(caplog: Any) -> None:
    for pool, warnings in (({}, 1), ({"capacity_tokens": 5000}, 0)):
        caplog.clear()
        router = router_of(1, **pool)
        for taken_at in (0.0, 1.0):
            router.pools["default"].update_load(0, LoadSnapshot(taken_at=taken_at))
        assert len(caplog.records) == warnings
        replica = router.pools["default"].by_name("r0")
        assert replica is not None
        assert router.lanes["default"].view.capacity_tokens(replica) == pool.get("capacity_tokens")


def test_without_a_view_load_decides_and_nothing_is_recorded() -> None:
    router = Router(from_data({"index": {"view": "none"}, "pools": [{"replicas": ["a:1", "b:1"]}]}))
    request = chat(words(1000))
    decision = router.decide(request, 0.0, 1)
    router.sent(decision.ticket, decision.choices[0], 0.0)
    other = router.decide(request, 0.0, 1)
    assert (decision.view, other.view, other.hit_tokens) == ("none", "none", (0, 0))
    assert other.choices[0] != decision.choices[0]
    assert router.lanes["default"].view.blocks == 0
    assert router.explain(request, 0.0).view == "none"


def test_a_restarted_engine_holds_nothing() -> None:
    router = router_of(1)
    pool = router.pools["default"]
    request = chat(words(1000))
    pool.update_load(0, LoadSnapshot(taken_at=0.0, prefix_queries=5000.0, prefix_hits=100.0))
    decision = router.decide(request, 0.0, 1)
    router.sent(decision.ticket, 0, 0.0)
    assert router.decide(request, 0.0, 1).hit_tokens[0] > 900
    pool.update_load(0, LoadSnapshot(taken_at=1.0, prefix_queries=10.0, prefix_hits=0.0))
    assert router.decide(request, 1.0, 1).hit_tokens == (0,)


def test_generated_text_is_expected_in_the_next_turn() -> None:
    router = router_of(2)
    decision = router.decide(chat(words(1000)), 0.0, 1)
    router.sent(decision.ticket, 0, 0.0)
    text = words(1000, 99).encode()
    router.close(decision.ticket, Outcome(output_tokens=1000, text=text), 1.0)
    longer = words(1000).encode() + b"\xffassistant\xfe" + text + b"more"
    again = router.decide(chat(longer), 2.0, 1)
    hits = dict(zip(again.choices, again.hit_tokens, strict=True))
    assert hits[0] == pytest.approx(2000, rel=0.05)


def test_unknown_text_still_fills_the_cache() -> None:
    router = router_of(1, capacity_tokens=4000)
    for seed in range(2):
        decision = router.decide(chat(words(1000, seed)), 0.0, seed)
        router.sent(decision.ticket, 0, 0.0)
        router.close(decision.ticket, Outcome(output_tokens=1900), 0.0)
    assert router.decide(chat(words(1000, 0)), 0.0, 1).hit_tokens[0] < 500, "pushed out by output"
    assert router.decide(chat(words(1000, 1)), 0.0, 1).hit_tokens[0] > 900


def test_a_removed_replica_comes_back_cold_in_a_slot_that_was_swept() -> None:
    router = router_of(2)
    pool = router.pools["default"]
    request = chat(words(1000))
    decision = router.decide(request, 0.0, 1)
    router.sent(decision.ticket, 0, 0.0)
    pool.remove("r0", 1.0)
    router.close(decision.ticket, Outcome(prompt_tokens=1000, output_tokens=5), 2.0)
    for _ in range(100):
        if not router.maintain(3.0):
            break
    assert pool.add(ReplicaSpec(url="http://r0:8000", name="r0"), 4.0) == 0
    again = router.decide(request, 5.0, 1)
    assert again.hit_tokens == (0, 0)


# The library


def test_an_index_that_is_clearly_too_small_is_warned_about(caplog: Any) -> None:
    """Once, when the engines have told their caches, with the size that would do."""
    router = Router(
        from_data(
            {
                "pools": [{"replicas": [f"http://r{n}:80" for n in range(4)]}],
                "index": {"max_bytes": 64 << 20},
            }
        )
    )
    pool, view = router.pools["default"], router.lanes["default"].view
    room = view.room_tokens()
    assert room == (32 << 20) // BLOCK_BYTES // 4 * 32
    with caplog.at_level(logging.WARNING):
        pool.update_load(0, LoadSnapshot(taken_at=0.0, num_blocks=room // 16, block_size=16))
        router.maintain(0.0)
        assert not [line for line in caplog.messages if line.startswith("index ")]
        for slot in range(3):
            load = LoadSnapshot(taken_at=1.0, num_blocks=room // 8, block_size=16)
            pool.update_load(slot, load)
            router.maintain(1.0)
    told = [line for line in caplog.messages if line.startswith("index ")]
    assert told == [
        f"index pool=default small=true room_tokens={room} replica_tokens={2 * room}"
        f" max_bytes={64 << 20} needed={128 << 20}"
    ]
    enough = Router(from_data({"pools": [{"replicas": ["http://r0:80"]}]}))
    load = LoadSnapshot(taken_at=0.0, num_blocks=100_000, block_size=16)
    enough.pools["default"].update_load(0, load)
    caplog.clear()
    enough.maintain(0.0)
    assert caplog.messages == []
