"""Who belongs to a pool: sources joined, drains before removal, an operator's word."""

from __future__ import annotations

import pytest

from warmlane.router.config import Limits, PoolConfig
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.membership import Membership, state_counts
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool
from warmlane.router.types import ReplicaSpec, ReplicaState


def specs(*ports: int, **more: object) -> list[ReplicaSpec]:
    return [ReplicaSpec(url=f"http://127.0.0.1:{port}", **more) for port in ports]  # type: ignore[arg-type]


@pytest.fixture
def member() -> Membership:
    return Membership(Pool(PoolConfig(), Limits(replicas=4)), Metrics(), drain_s=10.0)


def names(member: Membership) -> dict[str, str]:
    return {replica.name.rpartition(":")[2]: replica.state.name for replica in member.pool}


def test_sources_are_joined(member: Membership) -> None:
    member.update("static", specs(1), 0.0)
    member.update("file", specs(1, 2), 0.0)
    assert names(member) == {"1": "READY", "2": "READY"}
    assert state_counts(member.pool)["ready"] == 2
    member.update("file", [], 0.0)  # 1 is still named by the config
    assert names(member) == {"1": "READY", "2": "DRAINING"}
    member.tick(0.1)
    assert names(member) == {"1": "READY"}


def test_a_leaving_replica_is_removed_when_its_last_request_ends(member: Membership) -> None:
    member.update("dns", specs(1, 2), 0.0)
    slot = member.pool.by_name("127.0.0.1:2").slot  # type: ignore[union-attr]
    ticket = member.pool.ledger.open(slot, 1, 1, 0.0)
    member.update("dns", specs(1), 0.0)
    member.tick(5.0)
    assert names(member) == {"1": "READY", "2": "DRAINING"}
    member.pool.ledger.close(ticket, 6.0)
    member.tick(6.0)
    assert names(member) == {"1": "READY"}


def test_a_drain_is_cut_at_its_end(member: Membership) -> None:
    member.update("dns", specs(1), 0.0)
    member.pool.ledger.open(0, 1, 1, 0.0)
    member.update("dns", specs(2), 1.0)
    member.tick(10.9)
    assert "1" in names(member)
    member.tick(11.0)
    assert names(member) == {"2": "READY"}


def test_a_replica_that_comes_back_in_time_stays(member: Membership) -> None:
    member.update("dns", specs(1), 0.0)
    member.pool.ledger.open(0, 1, 1, 0.0)
    member.update("dns", specs(2), 1.0)
    member.update("dns", specs(1, 2), 2.0)
    assert names(member) == {"1": "READY", "2": "READY"}
    member.tick(100.0)
    assert names(member) == {"1": "READY", "2": "READY"}


def test_an_operators_drain_is_not_ended_by_discovery(member: Membership) -> None:
    member.update("dns", specs(1), 0.0)
    member.pool.drain("127.0.0.1:1")
    member.update("dns", specs(1, 2), 1.0)
    member.tick(1.0)
    assert names(member) == {"1": "DRAINING", "2": "READY"}


def test_a_changed_spec_replaces_the_replica_after_its_drain(member: Membership) -> None:
    member.update("file", specs(1, zone="a"), 0.0)
    ticket = member.pool.ledger.open(0, 1, 1, 0.0)
    member.update("file", specs(1, zone="b"), 1.0)
    member.tick(1.0)
    assert names(member) == {"1": "DRAINING"}
    member.pool.ledger.close(ticket, 2.0)
    member.tick(2.0)
    replica = member.pool.by_name("127.0.0.1:1")
    assert replica is not None
    assert (replica.spec.zone, replica.state) == ("b", ReplicaState.READY)


def test_an_operator_adds_and_removes(member: Membership) -> None:
    member.update("static", specs(1), 0.0)
    added = member.add(specs(7)[0], 0.0)
    assert added.name == "127.0.0.1:7"
    member.update("static", specs(1, 2), 0.0)
    assert set(names(member)) == {"1", "2", "7"}  # no source takes it away
    assert member.remove("127.0.0.1:7", 1.0)
    assert member.remove("127.0.0.1:1", 1.0)
    assert not member.remove("127.0.0.1:9", 1.0)
    member.tick(1.0)
    assert set(names(member)) == {"2"}
    member.update("file", specs(2), 2.0)  # static still names 1: it stays out
    member.tick(2.0)
    assert set(names(member)) == {"2"}
    member.update("static", specs(2), 3.0)
    member.update("static", specs(1, 2), 4.0)  # gone from its source and back again
    assert set(names(member)) == {"1", "2"}


def test_an_operator_may_add_again_what_he_removed(member: Membership) -> None:
    member.update("static", specs(1), 0.0)
    member.remove("127.0.0.1:1", 0.0)
    member.add(specs(1)[0], 0.0)
    member.tick(0.0)
    assert names(member) == {"1": "READY"}


def test_remove_at_once(member: Membership) -> None:
    member.update("static", specs(1), 0.0)
    member.pool.ledger.open(0, 1, 1, 0.0)
    assert member.remove("127.0.0.1:1", 0.0, at_once=True)
    assert names(member) == {}


def test_a_full_pool_refuses_says_so_once_and_recovers(
    member: Membership, caplog: pytest.LogCaptureFixture
) -> None:
    member.update("static", specs(1, 2, 3, 4), 0.0)
    member.update("file", specs(5), 0.0)
    for now in (1.0, 2.0, 3.0):
        member.tick(now)
    refused = [r for r in caplog.records if "replica_refused" in r.getMessage()]
    assert len(refused) == 1
    assert member.metrics.counts["warmlane_limits_reached_total"] == {("replicas",): 1}
    member.update("static", specs(1, 2, 3), 4.0)
    member.tick(4.0)
    member.pool.reap(lambda slot: True)
    member.tick(5.0)
    assert set(names(member)) == {"1", "2", "3", "5"}
    with pytest.raises(ConfigError):
        member.add(specs(6)[0], 6.0)


def test_the_same_list_again_changes_nothing(member: Membership) -> None:
    member.update("dns", specs(1, 2), 0.0)
    version = member.pool.version
    member.update("dns", specs(2, 1), 1.0)
    assert member.pool.version == version


def test_forgetting_a_source(member: Membership) -> None:
    member.update("static", specs(1), 0.0)
    member.update("file", specs(2), 0.0)
    member.forget_source("file", 1.0)
    member.forget_source("srv", 1.0)
    member.tick(1.0)
    assert names(member) == {"1": "READY"}


def test_series_of_a_removed_replica_go_with_it(member: Membership) -> None:
    member.update("static", specs(1), 0.0)
    member.metrics.request_done("default", "127.0.0.1:1", "chat", 200)
    member.update("static", [], 0.0)
    member.tick(0.0)
    assert member.metrics.requests == {}


def test_data_parallel_ranks_are_replicas_of_their_own() -> None:
    member = Membership(Pool(PoolConfig(), Limits(replicas=16)), Metrics(), drain_s=10.0)
    url = specs(1)[0].url
    member.update("static", specs(1, 2), 0.0)
    member.split(url, 2, 1.0)
    member.tick(1.0)
    assert set(names(member)) == {"1#0", "1#1", "2"}
    replica = member.pool.by_name("127.0.0.1:1#1")
    assert replica is not None and (replica.spec.url, replica.spec.rank) == (url, 1)
    member.update("static", specs(1, 2, 3), 2.0)
    member.tick(2.0)
    assert set(names(member)) == {"1#0", "1#1", "2", "3"}
    assert member.remove("127.0.0.1:1#0", 3.0, at_once=True)
    member.tick(3.0)
    assert set(names(member)) == {"1#1", "2", "3"}  # an operator's word holds for a rank, too
    member.split(url, 1, 4.0)
    member.tick(4.0)
    assert set(names(member)) == {"1", "2", "3"}
    member.split(url, 2, 5.0)
    member.update("static", specs(2), 6.0)
    member.tick(6.0)
    member.update("static", specs(1, 2), 7.0)  # another engine may be there now: asked again
    assert set(names(member)) == {"1", "2"}


def test_ranks_that_a_source_names_stay(member: Membership) -> None:
    spec = specs(1)[0]
    member.update("static", [ReplicaSpec(url=spec.url, rank=1)], 0.0)
    member.split(spec.url, 2, 1.0)
    member.tick(1.0)
    assert set(names(member)) == {"1#1"}
