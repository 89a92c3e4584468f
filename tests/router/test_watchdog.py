"""The zero-match watchdog: each way to be lastingly wrong and its cause; chance is not one."""

from __future__ import annotations

import logging
from array import array
from typing import Any

import pytest

from warmlane.router.config import Config, PoolConfig
from warmlane.router.core import Router
from warmlane.router.metrics_export import attach
from warmlane.router.proxy.admin import describe
from warmlane.router.types import Kind, LoadSnapshot, Outcome, ReplicaSpec, Request
from warmlane.router.watchdog import (
    ADAPTER,
    ADVICE,
    CHAT,
    EXACT,
    LEAST_REQUESTS,
    LEAST_TOKENS,
    LOOK_S,
    SALT,
    Engine,
    Facts,
    Sums,
    judge,
)

APPROXIMATE = Facts()
TRUSTED = Facts(exact=True, event_block=16)
BLIND = Facts(why="no events")


def sums(requests: int, predicted: float, cached: float, prompt: float = 100_000.0) -> Sums:
    return Sums(requests=requests, prompt=prompt, predicted=predicted, cached=cached)


def counters(queries: float, hits: float, block: int = 16) -> Engine:
    return Engine(counts=True, queries=queries, hits=hits, scrapes=3, block=block)


NO_ANSWERS = sums(0, 0, 0, 0)
SILENT = Engine()


@pytest.mark.parametrize(
    ("told", "engine", "facts", "kind", "cause"),
    [
        # the exact view
        ({EXACT: sums(20, 0, 9000)}, SILENT, TRUSTED, "missed", "tokenizer"),
        (
            {EXACT: sums(20, 0, 9000)},
            counters(10_000, 9000, block=64),
            TRUSTED,
            "missed",
            "block_size",
        ),
        ({EXACT: sums(20, 9000, 0)}, SILENT, TRUSTED, "promised", "events"),
        ({EXACT: sums(20, 0, 9000)}, SILENT, Facts(exact=True), "missed", "silent_events"),
        (
            {EXACT | CHAT: sums(20, 0, 9000), EXACT: sums(20, 5000, 5000)},
            SILENT,
            TRUSTED,
            "missed",
            "template",
        ),
        (
            {EXACT | ADAPTER: sums(20, 0, 9000), EXACT: sums(20, 5000, 5000)},
            SILENT,
            TRUSTED,
            "missed",
            "adapter",
        ),
        (
            {EXACT | SALT: sums(20, 9000, 0), EXACT: sums(20, 5000, 5000)},
            SILENT,
            TRUSTED,
            "promised",
            "salt",
        ),
        # without a trusted stream of events
        ({0: sums(20, 0, 9000)}, SILENT, BLIND, "missed", "not_trusted"),
        ({0: sums(20, 0, 9000)}, SILENT, APPROXIMATE, "missed", "others"),
        ({0: sums(20, 9000, 0)}, SILENT, APPROXIMATE, "promised", "eviction"),
        ({0: sums(20, 9000, 0)}, SILENT, Facts(capacity_known=False), "promised", "capacity"),
        ({0: sums(20, 9000, 0)}, counters(0, 0), APPROXIMATE, "promised", "caching_off"),
        # all is well
        ({0: sums(20, 9000, 7000)}, SILENT, APPROXIMATE, "", ""),
        ({0: sums(20, 7000, 9000)}, SILENT, TRUSTED, "", ""),
        ({CHAT: sums(20, 7000, 9000), 0: sums(20, 9000, 7000)}, SILENT, TRUSTED, "", ""),
    ],
)
def test_a_finding_by_answers(
    told: dict[int, Sums], engine: Engine, facts: Facts, kind: str, cause: str
) -> None:
    found = judge(told, NO_ANSWERS, engine, facts)
    assert found is not None
    assert (found.kind, found.cause) == (kind, cause)
    assert not cause or cause in ADVICE


@pytest.mark.parametrize(
    ("untold", "engine", "kind", "cause"),
    [
        (sums(20, 9000, 0), Engine(scrapes=3), "unknown", "no_truth"),
        (sums(20, 9000, 0), counters(0, 0), "promised", "caching_off"),
        (sums(20, 9000, 0), counters(100_000, 100), "promised", "eviction"),
        (sums(20, 0, 0), counters(100_000, 60_000), "missed", "others"),
        (sums(20, 50_000, 0), counters(100_000, 60_000), "", ""),
        # of 300,000 queried tokens two thirds are of others: their hits prove nothing against us
        (sums(20, 0, 0), counters(300_000, 210_000), "missed", "others"),
        (sums(20, 50_000, 0), counters(300_000, 0), "promised", "eviction"),
    ],
)
def test_a_finding_by_counters(untold: Sums, engine: Engine, kind: str, cause: str) -> None:
    found = judge({}, untold, engine, APPROXIMATE)
    assert found is not None
    assert (found.kind, found.cause) == (kind, cause)


@pytest.mark.parametrize(
    ("told", "untold", "engine"),
    [
        ({0: sums(LEAST_REQUESTS - 1, 9000, 0)}, NO_ANSWERS, SILENT),
        ({0: sums(50, LEAST_TOKENS - 1, 0)}, NO_ANSWERS, SILENT),
        ({}, sums(50, 9000, 0), SILENT),  # not scraped meanwhile
        ({}, sums(LEAST_REQUESTS - 1, 9000, 0), counters(0, 0)),
        ({}, sums(50, 0, 0, prompt=LEAST_TOKENS - 1), counters(0, 0)),
        ({}, sums(50, 1000, 0), counters(100_000, 100)),  # a few shared tokens
        ({}, sums(50, 0, 0), counters(300_000, 190_000)),  # these may all be the others'
    ],
)
def test_too_little_evidence_is_no_finding(
    told: dict[int, Sums], untold: Sums, engine: Engine
) -> None:
    assert judge(told, untold, engine, APPROXIMATE) is None


class Fleet:
    """A router with one replica whose answers and counters are given by hand."""

    def __init__(self) -> None:
        pool = PoolConfig(replicas=[ReplicaSpec(url="http://r0:8000", name="r0")], models=["m"])
        self.router = Router(Config(pools=[pool]))
        self.pool = self.router.pools["default"]
        self.replica = self.pool.replicas[0]
        assert self.replica is not None
        self.now = 100.0

    def ask(self, cached: int | None, **fields: Any) -> None:
        """The same prompt of 1,000 tokens again, answered with this many from cache."""
        tokens = array("I", range(1000)).tobytes()
        request = Request(kind=Kind.COMPLETIONS, model="m", **{"tokens": tokens, **fields})
        decision = self.router.decide(request, self.now, 0)
        self.router.sent(decision.ticket, 0, self.now)
        self.router.first_token(decision.ticket, self.now)
        outcome = Outcome(prompt_tokens=1000, cached_tokens=cached, output_tokens=1)
        self.router.close(decision.ticket, outcome, self.now)

    def look(self, queries: float | None = None, hits: float | None = None) -> Any:
        self.now += LOOK_S + 0.1
        self.pool.update_load(
            0, LoadSnapshot(taken_at=self.now, prefix_queries=queries, prefix_hits=hits)
        )
        self.router.maintain(self.now)
        assert self.replica is not None
        return self.replica.doubt


def test_a_lasting_disagreement_is_told_once_and_where_it_can_be_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "warmlane.watchdog")
    fleet = Fleet()
    for _ in range(12):
        fleet.ask(0)
    assert fleet.look() is None, "one look may be chance"
    for _ in range(12):
        fleet.ask(0)
    doubt = fleet.look()
    assert doubt is not None and (doubt.kind, doubt.cause) == ("promised", "capacity")
    assert doubt.predicted_tokens > LEAST_TOKENS and doubt.actual_tokens == 0
    for _ in range(12):
        fleet.ask(0)
    assert fleet.look() is not None
    lines = [line for line in caplog.messages if line.startswith("event=prediction_doubt")]
    assert len(lines) == 1, "one line per change"
    assert "replica=r0" in lines[0] and "cause=capacity" in lines[0]
    router, replica = fleet.router, fleet.replica
    assert replica is not None
    assert describe(fleet.pool, replica, fleet.now)["doubt"]["cause"] == "capacity"
    tokens = array("I", range(1000)).tobytes()
    request = Request(kind=Kind.COMPLETIONS, model="m", tokens=tokens)
    assert router.explain(request, fleet.now).replicas[0].doubt == "promised: capacity"
    attach(router.metrics, router.pools, lambda _: (0, 0), lambda: fleet.now)
    shown = router.metrics.render().decode()
    assert 'warmlane_prediction_doubt{pool="default",replica="r0",cause="capacity"} 1' in shown


def test_a_doubt_goes_with_the_first_evidence_against_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "warmlane.watchdog")
    fleet = Fleet()
    for _ in range(2):
        for _ in range(12):
            fleet.ask(0)
        doubt = fleet.look()
    assert doubt is not None
    assert fleet.look() is not None, "silence proves nothing"
    for _ in range(12):
        fleet.ask(992)
    assert fleet.look() is None
    assert [line for line in caplog.messages if line.startswith("event=prediction_agrees")]


def test_counters_speak_where_answers_do_not() -> None:
    fleet = Fleet()
    fleet.look(0.0, 0.0)
    queries = 0.0
    doubt = None
    for _ in range(3):
        for _ in range(12):
            fleet.ask(None)
        queries += 12_000
        doubt = fleet.look(queries, 0.0)
    assert doubt is not None and doubt.kind == "promised"


def test_an_engine_that_looks_nothing_up_is_named() -> None:
    fleet = Fleet()
    fleet.look(0.0, 0.0)
    for _ in range(3):
        for _ in range(12):
            fleet.ask(0)
        doubt = fleet.look(0.0, 0.0)
    assert doubt is not None and doubt.cause == "caching_off"


def test_a_restart_begins_anew() -> None:
    fleet = Fleet()
    fleet.look(50_000.0, 40_000.0)
    for _ in range(3):
        for _ in range(12):
            fleet.ask(0)
        doubt = fleet.look(10.0, 0.0)
        fleet.look(50_000.0, 0.0)
        assert doubt is None


def test_a_replica_that_leaves_takes_its_evidence_with_it() -> None:
    fleet = Fleet()
    for _ in range(12):
        fleet.ask(0)
    fleet.look()
    for _ in range(12):
        fleet.ask(0)
    fleet.pool.remove("r0", fleet.now)
    fleet.now += LOOK_S + 0.1
    fleet.router.maintain(fleet.now)
    spec = ReplicaSpec(url="http://r1:8000", name="r1")
    fleet.pool.add(spec, fleet.now)
    for _ in range(40):
        fleet.router.maintain(fleet.now)
    assert all(replica.doubt is None for replica in fleet.pool)
