"""Policies against each other on the virtual clock, through the real decision core."""

from __future__ import annotations

import msgspec
import pytest

from warmlane.router.sim.chance import Chance
from warmlane.router.sim.replay import Replay, ReplayOptions, Report, compare, table
from warmlane.router.sim.traces import Session, Turn, Workload
from warmlane.router.sim.workload import cut, generate

OPTIONS = ReplayOptions(replicas=4, seed=5)


def unshared(requests: int, rate: float, seed: int) -> Workload:
    """Open loop, Poisson, log-normal lengths, no two prompts with a block in common."""
    chance = Chance(seed)
    sessions, at_s = [], 0.0
    for number in range(requests):
        prompt = min(16_000, max(16, int(chance.lognormal(900, 1800))))
        output = max(1, int(chance.lognormal(120, 200)))
        turn = Turn(prompt, output, 0.0, 0.0, ((number << 20, -(-prompt // 64)),))
        sessions.append(Session(str(number), at_s, (turn,)))
        at_s += chance.exponential(1.0 / rate)
    return Workload(name="unshared", block_size=64, sessions=tuple(sessions))


def by_policy(reports: list[Report]) -> dict[str, Report]:
    return {report.policy: report for report in reports}


@pytest.mark.parametrize("rate", [8.0, 40.0, 70.0])
def test_default_is_never_worse_than_least_requests_when_nothing_is_shared(rate: float) -> None:
    """Over several seeds: mean and tail of TTFT and latency; 3 % is the noise between seeds."""
    mine, theirs = [], []
    for seed in (1, 2, 3):
        reports = compare(unshared(900, rate, seed), ["default", "least-requests"], OPTIONS)
        mine.append(reports[0])
        theirs.append(reports[1])
    for read in (
        lambda report: report.ttft.mean,
        lambda report: report.ttft.p99,
        lambda report: report.e2e.mean,
    ):
        assert sum(map(read, mine)) <= 1.03 * sum(map(read, theirs))
    assert all(report.hit == 0.0 and report.failed == 0 for report in mine)


@pytest.mark.parametrize(("profile", "sessions", "rate"), [("chat", 120, 4.0), ("agent", 60, 4.0)])
def test_rank_order_on_shared_prefixes(profile: str, sessions: int, rate: float) -> None:
    """Cache-aware before load-only: more hits and a shorter mean TTFT, no request lost."""
    options = msgspec.structs.replace(OPTIONS, rate=rate)
    workload = generate(profile, sessions)
    found = by_policy(compare(workload, ["default", "least-requests", "round-robin"], options))
    for policy in ("least-requests", "round-robin"):
        assert found["default"].hit > found[policy].hit + 0.08
        assert found["default"].ttft.mean < found[policy].ttft.mean
    assert {report.requests for report in found.values()} == {workload.requests}
    assert {report.failed for report in found.values()} == {0}


def test_rank_order_when_the_cache_is_the_bottleneck() -> None:
    """Long sessions on small caches: round robin thrashes, cache-aware routing keeps its hits."""
    options = msgspec.structs.replace(OPTIONS, kv_tokens=200_000, rate=8.0, think_cap_s=10.0)
    workload = cut(generate("coding", 12), turns=15)
    found = by_policy(compare(workload, ["default", "round-robin"], options))
    assert found["default"].hit > found["round-robin"].hit + 0.25
    assert found["default"].ttft.mean < 0.5 * found["round-robin"].ttft.mean


def test_no_ticket_is_left_and_the_prediction_is_close() -> None:
    replay = Replay(generate("chat", 40), "default", OPTIONS)
    report = replay.run()
    assert replay.router.open_tickets == 0
    assert report.predicted_hit == pytest.approx(report.hit, abs=0.05)
    assert all(engine.pool.usage == 0.0 for engine in replay.engines)


def test_a_replay_is_a_function_of_its_arguments() -> None:
    workload = generate("agent", 10)
    first = Replay(workload, "default", OPTIONS).run()
    assert Replay(workload, "default", OPTIONS).run() == first


def test_prompts_beyond_the_context_end_their_session() -> None:
    options = msgspec.structs.replace(OPTIONS, kv_tokens=3000)
    report = Replay(generate("chat", 10), "round-robin", options).run()
    assert 0 < report.requests < generate("chat", 10).requests


def test_the_table_names_every_policy() -> None:
    text = table(compare(generate("chat", 3), ["default", "round-robin"], OPTIONS))
    assert [line.split()[0] for line in text.splitlines()] == ["policy", "default", "round-robin"]
