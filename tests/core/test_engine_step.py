"""The compiled fleet against its twin (router/sim/engine.py), event by event, to the last bit."""

from __future__ import annotations

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.twin_engine_step import Arrival, by_twin, plain
from warmlane._core import engine_step
from warmlane._core.engine_step import NEVER, Fleet

arrivals = st.lists(
    st.tuples(
        st.floats(0, 0.2),
        st.integers(1, 70),
        st.integers(0, 60),
        st.integers(0, 3),
        st.integers(0, 16),
        st.booleans(),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=25,
)


def listed(drawn: list[tuple[Any, ...]]) -> list[Arrival]:
    at, made = 0.0, []
    for number, (gap, prompt, output, family, shared, answers, adapter) in enumerate(drawn):
        at += gap
        made.append(Arrival(at, number, prompt, output, family, shared, answers, adapter))
    return made


def by_fleet(given: dict[str, Any], requests: list[Arrival]) -> tuple[list[Any], Fleet]:
    fleet = Fleet([given])
    log: list[Any] = []

    def run(limit: float) -> None:
        while fleet.advance(limit):
            log.extend((fleet.now, "first", each) for each in fleet.first_tokens)
            log.extend((fleet.now, "end", each, cached) for each, cached in fleet.finished)

    for each in requests:
        run(each.at)
        keys = each.keys(given["block_size"])
        fleet.add(0, each.id, each.prompt, each.output, keys, each.at, adapter=each.adapter)
    run(NEVER)
    return log, fleet


def by_time(log: list[Any]) -> list[Any]:
    return sorted(log, key=lambda entry: (entry[0], entry[1], entry[2]))


@given(
    drawn=arrivals,
    blocks=st.integers(34, 120),
    loras=st.integers(1, 3),
    tier=st.sampled_from([0, 0, 1, 7, 40]),
)
@settings(max_examples=400, deadline=None)
def test_equal_to_the_twin(
    drawn: list[tuple[Any, ...]], blocks: int, loras: int, tier: int
) -> None:
    given = plain(blocks=blocks, max_loras=loras, tier_blocks=tier, tier_token_s=1e-5)
    requests = [each for each in listed(drawn) if each.prompt + each.output <= (blocks - 1) * 4]
    twin_log, engine = by_twin(given, requests)
    log, fleet = by_fleet(given, requests)
    # A pooling request (output 0) has no first token in the twin's list; its end says the same.
    pooling = {each.id for each in requests if each.output == 0}
    kept = [each for each in log if not (each[1] == "first" and each[2] in pooling)]
    twin_kept = [each for each in twin_log if not (each[1] == "first" and each[2] in pooling)]
    assert by_time(kept) == by_time(twin_kept)
    found = fleet.counters(0)
    assert found["prefix_hits"] == engine.counters.prefix_hits
    assert found["tier_hits"] == engine.counters.tier_hits
    assert found["prefix_queries"] == engine.counters.prefix_queries
    assert found["preemptions"] == engine.counters.preemptions
    assert found["generated_tokens"] == engine.counters.generated_tokens
    assert found["steps"] == engine.counters.steps
    assert found["busy_s"] == pytest.approx(engine.counters.busy_s, rel=1e-9)
    assert fleet.load(0) == (0, 0, 0.0)


def test_stored_and_removed_keys_are_the_cache() -> None:
    fleet = Fleet([plain(blocks=20)], record=True)
    held: dict[int, int] = {}
    for number in range(60):
        each = Arrival(number * 1.0, number, 20, 6, number % 5, 3, True, 0)
        fleet.add(0, number, each.prompt, each.output, each.keys(4), each.at)
        while fleet.advance(each.at + 0.99):
            for key in fleet.take_removed(0):
                held[key] -= 1
            for key in fleet.take_stored(0):
                held[key] = held.get(key, 0) + 1
        assert min(held.values()) >= 0
        assert sum(held.values()) <= 19
    probe = Arrival(100.0, 99, 20, 1, 59 % 5, 3, False, 0)
    expected = 0
    for key in probe.keys(4)[:4]:
        if not held.get(key):
            break
        expected += 4
    fleet.add(0, 99, probe.prompt, probe.output, probe.keys(4), probe.at)
    ends = []
    while fleet.advance(NEVER):
        ends += fleet.finished
    assert ends == [(99, expected)]


def test_replicas_are_served_in_the_order_of_time() -> None:
    fast, slow = plain(), plain()
    fleet = Fleet([slow, fast])
    fleet.set_speed(1, 4.0)
    for slot in (0, 1):
        fleet.add(slot, slot, 30, 10, array("Q"), 0.0)
    seen = []
    while fleet.advance(NEVER):
        seen.append((fleet.now, fleet.slot))
    assert seen == sorted(seen)
    assert [slot for _, slot in seen[:1]] == [1]
    assert seen[-1][1] == 0


def test_a_dead_replica_gives_its_requests_back() -> None:
    fleet = Fleet([plain()])
    for number in range(9):
        fleet.add(0, number, 40, 20, array("Q"), 0.0)
    assert not fleet.advance(0.001)
    assert sorted(fleet.fail(0)) == list(range(9))
    assert fleet.load(0) == (0, 0, 0.0)
    assert fleet.next_at(0) == NEVER
    fleet.add(0, 10, 4, 1, array("Q"), 1.0)
    assert fleet.advance(NEVER)


def test_what_is_evicted_is_loaded_from_the_tier() -> None:
    given = plain(blocks=20, tier_blocks=100, tier_token_s=1e-3)
    fleet = Fleet([given])
    for number in range(4):  # 4 x 12 blocks: the first prompt is evicted by the last ones
        each = Arrival(float(number), number, 48, 1, number, 12, False, 0)
        fleet.add(0, number, each.prompt, each.output, each.keys(4), each.at)
        while fleet.advance(each.at + 0.9):
            pass
    again = Arrival(5.0, 9, 48, 1, 0, 12, False, 0)
    out = array("i", [0])
    assert fleet.held(again.keys(4), out) < 11
    assert fleet.held(again.keys(4), out, tier_worth=1.0) >= 11
    busy = fleet.counters(0)["busy_s"]
    fleet.add(0, 9, again.prompt, again.output, again.keys(4), again.at)
    ends = []
    while fleet.advance(NEVER):
        ends += fleet.finished
    assert ends == [(9, 44)]
    loaded = fleet.counters(0)["tier_hits"]
    assert 0 < loaded <= 44
    assert fleet.counters(0)["busy_s"] - busy > loaded * 1e-3
    with pytest.raises(ValueError, match="tier"):
        Fleet([plain(tier_blocks=-1)])


def test_bad_input() -> None:
    fleet = Fleet([plain()])
    for wrong in ({"prompt": 0}, {"output": -1}, {"prompt": 1000}, {"adapter": 5000}):
        values: dict[str, Any] = {"prompt": 4, "output": 1, "adapter": 0} | wrong
        adapter = values.pop("adapter")
        with pytest.raises(ValueError, match=r"tokens|adapters"):
            fleet.add(0, 1, values["prompt"], values["output"], array("Q"), 0.0, adapter=adapter)
    with pytest.raises(TypeError):
        fleet.add(0, 1, 4, 1, array("I"), 0.0)
    with pytest.raises(IndexError):
        fleet.add(1, 1, 4, 1, array("Q"), 0.0)
    with pytest.raises(ValueError, match="blocks"):
        Fleet([plain(blocks=1)])
    with pytest.raises(ValueError, match="fleet"):
        Fleet([])
    fleet.advance(5.0)
    with pytest.raises(ValueError, match="before"):
        fleet.add(0, 1, 4, 1, array("Q"), 4.0)


def test_a_failed_allocation_changes_nothing() -> None:
    fleet = Fleet([plain()])
    for fail_at in range(3):
        engine_step._fail_after(fail_at)
        with pytest.raises(MemoryError):
            fleet.add(0, 1, 4, 1, array("Q", [1]), 0.0)
    for fail_at in range(14):
        engine_step._fail_after(fail_at)
        with pytest.raises(MemoryError):
            Fleet([plain()])
    for fail_at in range(18):
        engine_step._fail_after(fail_at)
        with pytest.raises(MemoryError):
            Fleet([plain(tier_blocks=8)])
    engine_step._fail_after(-1)
    fleet.add(0, 1, 4, 1, array("Q", [1]), 0.0)
    assert fleet.advance(NEVER)


def test_held_is_what_a_request_would_hit() -> None:
    fleet = Fleet([plain(), plain()])
    first = Arrival(0.0, 1, 40, 5, 1, 6, False, 0)
    fleet.add(1, 1, first.prompt, first.output, first.keys(4), 0.0)
    while fleet.advance(NEVER):
        pass
    out = array("i", [7, 7])
    other = Arrival(0.0, 2, 40, 5, 1, 6, False, 0)
    assert fleet.held(other.keys(4), out) == 6
    assert out.tolist() == [0, 6]
    with pytest.raises(TypeError):
        fleet.held(other.keys(4), array("i", [0]))


def test_block_keys_agree_exactly_on_shared_runs() -> None:
    left = engine_step.block_keys([(5, 3), (100, 2)], 4, 20)
    right = engine_step.block_keys([(5, 3), (200, 2)], 4, 18)
    assert left[:12] == right[:12]
    assert not set(left[12:]) & set(right[12:])
    assert len(set(left)) == len(left) == 20
    assert len(right) == 18
    assert len(engine_step.block_keys([(5, 1)], 4, 20)) == 4
    with pytest.raises(ValueError, match="range"):
        engine_step.block_keys([], 0, 1)
