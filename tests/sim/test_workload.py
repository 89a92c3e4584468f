"""The built-in generator: the same everywhere, true to its fit, and text that keeps the sharing."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from warmlane.router.sim.chance import Chance
from warmlane.router.sim.statistics import Statistics, describe
from warmlane.router.sim.workload import PROFILES, Texts, cut, generate

DOCS = Path(__file__).parents[2] / "docs" / "workloads.md"

# profile -> sessions and the published values of the trace that it is fitted to: requests per
# session, prompt mean and p90, output mean and p50, shared hit, 4 and 8 caches round robin.
FIT = {
    "chat": (200, (12.27, 3073, 5042, 81, 62, 0.937, 0.808, 0.715)),
    "agent": (20, (20.1, 6017, 12_313, 113, 98, 0.936, 0.766, 0.567)),
    "coding": (381, (45.3, 78_327, 121_004, 417, 206, 0.962, 0.874, 0.782)),
}
LENGTHS = 0.12  # relative
SHARES = 0.06  # absolute


def row(found: Statistics) -> tuple[float, ...]:
    return (
        found.requests / found.sessions,
        found.prompt.mean,
        found.prompt.p90,
        found.output.mean,
        found.output.p50,
        found.shared,
        found.round_robin[4],
        found.round_robin[8],
    )


@pytest.mark.parametrize("profile", sorted(FIT))
def test_the_generator_keeps_its_fit(profile: str) -> None:
    sessions, published = FIT[profile]
    found = row(describe(generate(profile, sessions)))
    for mine, theirs in zip(found[:5], published[:5], strict=True):
        assert mine == pytest.approx(theirs, rel=LENGTHS)
    for mine, theirs in zip(found[5:], published[5:], strict=True):
        assert mine == pytest.approx(theirs, abs=SHARES)


def test_no_session_is_empty_and_a_message_that_is_too_long_is_cut() -> None:
    made = generate("coding", 300, seed=1)
    limit = PROFILES["coding"].limit
    cut_short = [65, 130, 135, 215, 273]
    for number, session in enumerate(made.sessions):
        first = session.turns[0]
        assert first.prompt + (number in cut_short) * first.output <= limit
        if number in cut_short:
            assert len(session.turns) == 1 and first.prompt + first.output == limit
        blocks = sum(count for _, count in first.runs)
        assert blocks == -(-first.prompt // made.block_size)
    # Those behind it are what they are without it.
    turns = made.sessions[66].turns
    assert (len(turns), turns[0].prompt, turns[-1].prompt) == (24, 46_026, 97_632)
    assert made.requests == 12_190 + len(cut_short)


@pytest.mark.parametrize("profile", sorted(FIT))
def test_the_table_of_the_documentation_is_true(profile: str) -> None:
    line = next(
        text for text in DOCS.read_text().splitlines() if text.startswith(f"| {profile}, g")
    )
    told = [float(cell.replace(",", "")) for cell in line.split("|")[2:-1]]
    found = row(describe(generate(profile, FIT[profile][0])))
    for mine, written in zip(found, told, strict=True):
        assert written == pytest.approx(mine, rel=0.006)


def test_a_seed_gives_one_workload_and_another_seed_another() -> None:
    assert generate("chat", 20) == generate("chat", 20)
    assert generate("chat", 20) != generate("chat", 20, seed=2)
    assert generate("chat", 30).sessions[:20] == generate("chat", 20).sessions


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_prompts_grow_and_cover_their_tokens(profile: str) -> None:
    workload = generate(profile, 10)
    for session in workload.sessions:
        assert session.turns
        for turn in session.turns:
            count = len(list(turn.blocks()))
            assert (count - 1) * workload.block_size < turn.prompt <= count * workload.block_size
        for before, after in pairwise(session.turns):
            full = before.prompt // workload.block_size
            assert list(after.blocks())[:full] == list(before.blocks())[:full]
            assert after.prompt > before.prompt + before.output - 1


def test_cut_limits_sessions_turns_and_requests() -> None:
    workload = generate("chat", 20)
    assert len(cut(workload, sessions=5).sessions) == 5
    assert max(len(session.turns) for session in cut(workload, turns=3).sessions) == 3
    assert cut(workload, requests=17).requests == 17
    assert cut(workload) == workload


@pytest.mark.parametrize("shrink", [1.0, 2.0, 5.0, 64.0])
def test_texts_keep_shared_prefixes_and_lengths(shrink: float) -> None:
    workload = generate("chat", 8)
    texts = Texts(workload.block_size, shrink)
    for session in workload.sessions:
        for before, after in pairwise(session.turns):
            short, long = texts.prompt(before), texts.prompt(after)
            assert len(short) == 4 * texts.tokens(before.prompt)
            assert long.startswith(short)
    first, second = (texts.prompt(workload.sessions[n].turns[0]) for n in (0, 1))
    system = workload.sessions[0].turns[0].runs[0][1] * texts.tokens_per_block * 4
    assert first[:system] == second[:system]
    assert re.fullmatch(rb"[a-z ]*", first)


def test_chance_has_the_moments_it_claims() -> None:
    chance = Chance(7)
    count = 40_000
    draws = {
        "exponential": ([chance.exponential(3.0) for _ in range(count)], 3.0),
        "lognormal": ([chance.lognormal(10.0, 14.0) for _ in range(count)], 14.0),
        "gamma, bursty": ([chance.gamma(2.0, 3.0) for _ in range(count)], 2.0),
        "gamma, even": ([chance.gamma(2.0, 0.5) for _ in range(count)], 2.0),
        "uniform": ([chance.uniform() for _ in range(count)], 0.5),
        "below": ([float(chance.below(9)) for _ in range(count)], 4.0),
    }
    for name, (values, mean) in draws.items():
        assert sum(values) / count == pytest.approx(mean, rel=0.06), name
    values = draws["gamma, bursty"][0]
    variance = sum((value - 2.0) ** 2 for value in values) / count
    assert variance**0.5 / 2.0 == pytest.approx(3.0, rel=0.12)
    assert min(draws["uniform"][0]) >= 0.0
    assert max(draws["uniform"][0]) < 1.0


def test_a_shuffle_is_a_permutation() -> None:
    items = list(range(100))
    Chance(3).shuffle(items)
    assert sorted(items) == list(range(100))
    assert items != list(range(100))
