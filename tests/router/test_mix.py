"""What the default mix promises without tuning, on modelled engines with a virtual clock.

Seeded and deterministic. The comparison with more policies and on real traces is the benchmarks'.
"""

from __future__ import annotations

import random

import pytest

from tests.router.clockwork import Job, Result, run


def fresh(rand: random.Random, count: int) -> bytes:
    """Token ids that no other prompt has."""
    return rand.randbytes(4 * count)


def lengths(rand: random.Random, median: float, sigma: float, most: int = 60_000) -> int:
    return min(most, max(1, int(rand.lognormvariate(0.0, sigma) * median)))


def unshared(seed: int, count: int, rate: float, prompt: float, output: float) -> list[Job]:
    """Poisson arrivals of prompts that share nothing."""
    rand, now, jobs = random.Random(seed), 0.0, []
    for _ in range(count):
        now += rand.expovariate(rate)
        tokens = fresh(rand, lengths(rand, prompt, 0.8))
        jobs.append(Job(now, tokens, lengths(rand, output, 0.8, 2000)))
    return jobs


def chats(seed: int, count: int, rate: float, system: int, turns: int, turn: int) -> list[Job]:
    """Sessions over three system prompts; each turn repeats all before it."""
    rand, now, jobs = random.Random(seed), 0.0, []
    heads = [fresh(rand, system) for _ in range(3)]
    for _ in range(count):
        now += rand.expovariate(rate)
        context, lines = heads[rand.randrange(3)], []
        for _ in range(turns):
            context += fresh(rand, lengths(rand, turn, 0.7))
            lines.append(context)
        job = None
        for line in reversed(lines):
            job = Job(now, line, lengths(rand, 60, 0.5), job, rand.uniform(0.2, 2.0))
        assert job is not None
        jobs.append(job)
    return jobs


@pytest.mark.parametrize(
    ("name", "count", "rate", "prompt", "output"),
    [
        ("prefill-bound", 400, 12.0, 5000, 12),
        ("long prompts", 200, 1.6, 15_000, 60),
        ("mixed", 500, 20.0, 1000, 60),
        ("decode-bound", 500, 40.0, 100, 150),
    ],
)
def test_never_worse_than_least_requests_when_nothing_is_shared(
    name: str, count: int, rate: float, prompt: float, output: float
) -> None:
    """Summed over two seeds, within the 3 % that differ by the luck of ties alone."""
    ours, theirs = [], []
    for seed in (1, 2):
        jobs = unshared(seed, count, rate, prompt, output)
        ours.append(run(jobs))
        theirs.append(run(jobs, "least-requests"))

    def total(results: list[Result], what: str) -> float:
        return sum(float(getattr(result, what)) for result in results)

    assert total(ours, "mean_ttft") <= 1.03 * total(theirs, "mean_ttft"), name
    assert total(ours, "mean_e2e") <= 1.03 * total(theirs, "mean_e2e"), name


def test_chats_hit_nearly_what_one_endless_cache_would() -> None:
    jobs = chats(5, 80, 3.0, system=3000, turns=5, turn=400)
    ours, others, alone = run(jobs), run(jobs, "round-robin"), run(jobs, replicas=1)
    assert ours.hit_share > 0.93 * alone.hit_share > others.hit_share
    assert ours.mean_ttft < 0.7 * others.mean_ttft
    assert max(ours.share.values()) < 0.45 * sum(ours.share.values())


def test_one_shared_first_block_keeps_no_replica_idle() -> None:
    """One after the other, so that no queue ever spreads them."""
    rand = random.Random(3)
    head = fresh(rand, 64)
    jobs = [Job(3.0 * i, head + fresh(rand, 800), 10) for i in range(120)]
    share = run(jobs).share
    assert len(share) == 4 and max(share.values()) <= 40 and min(share.values()) >= 20


def test_a_hot_prefix_is_copied_when_its_home_is_busy() -> None:
    rand, now, jobs = random.Random(4), 0.0, []
    head = fresh(rand, 6000)
    for _ in range(300):
        now += rand.expovariate(70.0)
        jobs.append(Job(now, head + fresh(rand, 1200), 20))
    ours, least = run(jobs), run(jobs, "least-requests")
    assert len(ours.share) == 4 and max(ours.share.values()) < 120
    assert ours.hit_share > 0.75
    assert ours.p(0.9) <= 1.05 * least.p(0.9)


def test_a_long_session_stays_home_and_a_short_hit_does_not_hold_it() -> None:
    rand = random.Random(5)
    long_head, short_head = fresh(rand, 20_000), fresh(rand, 200)
    warm = [Job(0.0, long_head, 4), Job(20.0, short_head, 4)]
    noise = [Job(30.0 + i / 1e3, fresh(rand, 2500), 4) for i in range(8)]
    back = [Job(30.05, long_head + fresh(rand, 50), 4), Job(30.06, short_head + fresh(rand, 50), 4)]
    result = run(warm + noise + back)
    assert result.hits >= 20_000 - 32
    assert result.hits < 20_000 + 200 + 250


def test_a_burst_of_one_prefix_meets_and_does_not_herd() -> None:
    """Forty equal prompts at once: few copies are computed, and no replica queues them all."""
    rand = random.Random(6)
    prompt = fresh(rand, 4000)
    result = run([Job(0.0, prompt, 50) for _ in range(40)])
    assert max(result.share.values()) <= 25
    assert result.hit_share >= 0.85


@pytest.mark.parametrize("policy", ["default", "least-requests", "round-robin", "random"])
def test_every_policy_answers_everything(policy: str) -> None:
    jobs = chats(7, 10, 4.0, system=300, turns=3, turn=100)
    result = run(jobs, policy)
    assert len(result.ttft) == 30 == sum(result.share.values())
