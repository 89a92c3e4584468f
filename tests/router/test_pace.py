"""The pace of prefill: what waits decides which time counts."""

from __future__ import annotations

import pytest

from warmlane.router.config import PoolConfig
from warmlane.router.pace import WINDOW_S, PrefillPace
from warmlane.router.pool import Pool
from warmlane.router.types import LoadSnapshot, ReplicaSpec


def at(time: float, computed: float, hits: float = 0.0) -> LoadSnapshot:
    return LoadSnapshot(taken_at=time, prefix_queries=computed + hits, prefix_hits=hits)


def play(pace: PrefillPace, steps: list[tuple[float, float, bool]]) -> None:
    previous = None
    for time, computed, busy in steps:
        load = at(time, computed, hits=10 * computed)
        pace.heard(0, previous, load, busy)
        previous = load


@pytest.fixture
def pace() -> PrefillPace:
    made = PrefillPace()
    made.add()
    return made


def test_unknown_until_a_window_of_work(pace: PrefillPace) -> None:
    play(pace, [(0.0, 0, True), (WINDOW_S - 1, 4000, True)])
    assert pace.backlog_s(0, 100) is None
    assert pace.backlog_s(0, 0) == 0.0  # nothing waits: known without a pace


def test_tokens_from_the_cache_are_no_work(pace: PrefillPace) -> None:
    play(pace, [(0.0, 0, True), (5.0, 5000, True)])
    assert pace.backlog_s(0, 2500) == pytest.approx(2.5)


def test_idle_time_does_not_count(pace: PrefillPace) -> None:
    """Two idle hours between two busy spells leave the pace what it was."""
    play(pace, [(0.0, 0, True), (5.0, 5000, False), (7205.0, 5100, True), (7210.0, 10_100, True)])
    assert pace.tokens_per_s[0] == pytest.approx(1000)


def test_it_follows_slowly(pace: PrefillPace) -> None:
    play(pace, [(0.0, 0, True), (5.0, 5000, True), (10.0, 15_000, True)])
    assert 1000 < pace.tokens_per_s[0] < 2000


def test_a_restarted_engine_begins_anew(pace: PrefillPace) -> None:
    play(pace, [(0.0, 0, True), (5.0, 5000, True), (6.0, 10, True)])
    assert pace.backlog_s(0, 1) is None


def test_an_engine_that_counts_nothing_has_no_pace(pace: PrefillPace) -> None:
    loads = [LoadSnapshot(taken_at=5.0 * n, waiting=1) for n in range(4)]
    for previous, load in zip([None, *loads], loads, strict=False):
        pace.heard(0, previous, load, True)
    assert pace.backlog_s(0, 1) is None


def test_a_pool_knows_its_backlog() -> None:
    """Own and others' waiting work, over what the engine did while it had some."""
    pool = Pool(PoolConfig(capacity_tokens=1000))
    slot = pool.add(ReplicaSpec(url="http://10.0.0.1:8000"), 0.0)
    pool.update_load(slot, at(0.0, 0))
    ticket = pool.ledger.open(slot, 3000, 3000, 0.0)
    pool.update_load(slot, at(1.0, 0))
    pool.update_load(slot, at(6.0, 5000))
    assert pool.pace.backlog_s(slot, pool.backlog_tokens(slot)) == pytest.approx(3.0)
    pool.ledger.close(ticket, 6.0)
    assert pool.pace.backlog_s(slot, pool.backlog_tokens(slot)) == 0.0
    replica = pool.replicas[slot]
    assert replica is not None and pool.capacity_tokens(replica) == 1000
