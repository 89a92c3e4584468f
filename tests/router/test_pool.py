"""Membership, states, and load columns that neither die nor idle when they go stale."""

from __future__ import annotations

import pytest

from warmlane.router.config import Limits, PoolConfig
from warmlane.router.errors import ConfigError
from warmlane.router.pool import Pool, Replica
from warmlane.router.types import LoadSnapshot, ModelList, ReplicaSpec, ReplicaState


def pool_of(count: int = 3, **options: object) -> Pool:
    pool = Pool(PoolConfig(name="p"), Limits(replicas=8), **options)  # type: ignore[arg-type]
    for i in range(count):
        pool.add(ReplicaSpec(url=f"http://r{i}:1", name=f"r{i}"), 0.0)
    return pool


def load(waiting: float = 0, running: float = 0, at: float = 0.0, **more: object) -> LoadSnapshot:
    return LoadSnapshot(taken_at=at, waiting=waiting, running=running, **more)  # type: ignore[arg-type]


def test_add_is_idempotent_and_names_are_unique() -> None:
    pool = pool_of()
    version = pool.version
    assert pool.add(ReplicaSpec(url="r1:1", name="r1"), 0.0) == 1
    assert pool.version == version
    with pytest.raises(ConfigError, match=r"'r1'.*taken"):
        pool.add(ReplicaSpec(url="http://other:1", name="r1"), 0.0)
    with pytest.raises(ConfigError, match=r"limits\.replicas"):
        for i in range(10):
            pool.add(ReplicaSpec(url=f"http://x{i}:1"), 0.0)


def test_events_and_versions() -> None:
    pool = pool_of()
    heard: list[tuple[str, str]] = []
    pool.on_change(lambda event, replica: heard.append((event, replica.name)))
    assert pool.set_state(0, ReplicaState.EJECTED, "probe")
    assert not pool.set_state(0, ReplicaState.EJECTED, "again")
    assert pool.set_models(1, ModelList(models=frozenset({"m"})))
    assert not pool.set_models(1, ModelList(models=frozenset({"m"})))
    assert pool.drain("r2") and pool.undrain("r2")
    assert pool.remove("r0", 1.0) and not pool.remove("r0", 1.0)
    pool.add(ReplicaSpec(url="http://n:1", name="n"), 0.0)
    assert heard == [
        ("state", "r0"),
        ("models", "r1"),
        ("state", "r2"),
        ("state", "r2"),
        ("removed", "r0"),
        ("added", "n"),
    ]
    assert pool.version == 4 + len(heard)
    assert not pool.drain("none") and not pool.undrain("none")


def test_a_drained_replica_stays_drained_whatever_probes_say() -> None:
    pool = pool_of()
    pool.drain("r0")
    assert not pool.set_state(0, ReplicaState.READY)
    assert not pool.set_state(0, ReplicaState.EJECTED)
    replica = pool.by_name("r0")
    assert isinstance(replica, Replica) and replica.state is ReplicaState.DRAINING
    pool.undrain("r0")
    assert replica.state is ReplicaState.EJECTED and pool.ready[0] == 0
    with pytest.raises(AssertionError):
        pool.set_state(0, ReplicaState.DRAINING)


def test_a_slot_waits_for_its_tickets_and_for_the_index() -> None:
    pool = pool_of()
    ticket = pool.ledger.open(1, 10, 10, 0.0)
    pool.remove("r1", 0.0)
    assert [replica.name for replica in pool] == ["r0", "r2"]
    assert pool.reap(lambda slot: True) == 0, "a ticket is open on it"
    assert pool.add(ReplicaSpec(url="http://n:1", name="n"), 0.0) == 3
    pool.ledger.close(ticket, 1.0)
    assert pool.reap(lambda slot: False) == 0, "the index still sweeps"
    assert pool.reap(lambda slot: True) == 1
    assert pool.add(ReplicaSpec(url="http://n2:1", name="n2"), 0.0) == 1
    assert len(pool) == 4


def test_late_news_of_a_gone_replica_is_ignored() -> None:
    pool = pool_of()
    pool.remove("r1", 0.0)
    pool.update_load(1, load(waiting=5))
    assert not pool.set_state(1, ReplicaState.READY)
    assert not pool.set_models(1, ModelList())
    assert pool.ready[1] == 0 and pool.foreign.requests[1] == 0


def test_the_work_of_others_is_what_the_engine_counts_beyond_the_ledger() -> None:
    pool = pool_of()
    first = pool.ledger.open(0, 1000, 1000, 0.0)
    pool.ledger.open(0, 500, 500, 0.0)
    pool.ledger.first_token(first, 1.0)
    pool.update_load(0, load(waiting=4, running=2, kv_usage=0.5))
    assert pool.foreign.requests[0] == 4  # 6 seen, 2 are ours
    assert pool.foreign.waiting[0] == 3  # 4 wait, one of them is ours
    assert pool.foreign.tokens[0] == 3 * pool.mean_uncached_tokens
    assert pool.foreign.some
    pool.update_load(0, load(waiting=0, running=1))
    assert pool.foreign.requests[0] == 0


def test_stale_looks_neither_dead_nor_idle() -> None:
    pool = pool_of(stale_s=5.0)
    pool.update_load(0, load(waiting=50, running=9, at=0.0, kv_usage=1.0))
    pool.update_load(1, load(at=3.0, kv_usage=0.4))
    pool.update_load(2, load(at=3.0, kv_usage=0.2))
    pool.freshen(4.9)
    assert pool.foreign.waiting[0] == 50 and pool.kv_usage[0] == 1.0
    pool.freshen(5.0)
    assert pool.foreign.waiting[0] == 0 and pool.foreign.requests[0] == 0
    assert pool.kv_usage[0] == pytest.approx(0.3), "as the fresh ones, not full and not empty"
    assert not pool.foreign.some
    pool.freshen(9.0)
    assert list(pool.kv_usage) == [0.0, 0.0, 0.0], "nobody knows: all equal"
    pool.update_load(0, load(waiting=2, at=9.0))
    pool.freshen(9.5)
    assert pool.foreign.waiting[0] == 2


def test_a_sleeping_engine_is_not_ready() -> None:
    pool = pool_of()
    version = pool.version
    pool.update_load(0, load(asleep=True))
    assert pool.ready[0] == 0 and pool.version == version + 1
    pool.update_load(0, load(asleep=True))
    assert pool.version == version + 1
    pool.update_load(0, load(asleep=False))
    assert pool.ready[0] == 1


def test_placements_fade_and_a_newcomer_starts_level() -> None:
    pool = pool_of()
    for slot, tokens in enumerate((4000.0, 1000.0, 2000.0)):
        pool.placed(slot, tokens)
    pool.fade(0.0)
    pool.fade(300.0)
    assert list(pool.placed_tokens) == [2000.0, 500.0, 1000.0]
    slot = pool.add(ReplicaSpec(url="http://n:1"), 0.0)
    assert pool.placed_tokens[slot] == 500.0
    pool.fade(100.0)  # a clock that went back changes nothing
    assert pool.placed_tokens[0] == 2000.0


def test_ages() -> None:
    pool = pool_of()
    assert pool.load_age_s(0, 5.0) is None
    pool.update_load(0, load(at=2.0))
    assert pool.load_age_s(0, 5.0) == 3.0
