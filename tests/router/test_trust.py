"""Trust and bytes per token: what they converge to, what they ignore, their clamps."""

from __future__ import annotations

import random

import pytest

from warmlane.router.trust import FLOOR, BytesPerToken, Trust, blocks_for


def test_answers_move_the_factor_to_the_true_ratio() -> None:
    trust, rnd = Trust(3), random.Random(1)
    for at in range(400):
        predicted = rnd.choice([100, 3000, 20_000])
        trust.answered(1, predicted, 0.6 * predicted, predicted + 500, float(at))
    assert trust.factors[1] == pytest.approx(0.6, abs=0.01)
    assert list(trust.factors)[::2] == [1.0, 1.0]


def test_few_samples_do_not_move_it() -> None:
    trust = Trust(1, min_samples=4)
    for at in range(3):
        trust.answered(0, 50_000, 0, 60_000, float(at))
    assert trust.factors[0] == 1.0
    trust.answered(0, 50_000, 0, 60_000, 4.0)
    assert trust.factors[0] == FLOOR


def test_short_prompts_weigh_little() -> None:
    trust = Trust(1)
    for at in range(50):
        trust.answered(0, 20, 0, 30, float(at))
    for at in range(5):
        trust.answered(0, 100_000, 100_000, 110_000, 50.0 + at)
    assert trust.factors[0] > 0.99


def test_luck_does_not_repair_a_wrong_prediction() -> None:
    trust = Trust(1, prior_tokens=1.0)
    for at in range(20):
        trust.answered(0, 10_000, 5_000, 30_000, float(at))
        trust.answered(0, 10, 30_000, 30_000, float(at))
    assert trust.factors[0] == pytest.approx(0.5, abs=0.01)


def test_counters_alone_converge_and_others_traffic_is_taken_out() -> None:
    trust = Trust(1)
    queries = hits = 0.0
    trust.scraped(0, queries, hits, 0.0)
    for at in range(1, 60):
        for _ in range(5):
            trust.sent(0, 4_000, 10_000)
        # Ours: 50,000 tokens with 10,000 hits. As many of another router with the same hit share.
        queries += 100_000
        hits += 20_000
        assert trust.scraped(0, queries, hits, 5.0 * at) is False
    assert trust.factors[0] == pytest.approx(0.5, abs=0.03)


def test_answers_take_precedence_over_counters() -> None:
    trust = Trust(1)
    queries = 0.0
    trust.scraped(0, queries, 0.0, 0.0)
    for at in range(1, 40):
        trust.sent(0, 8_000, 10_000)
        trust.answered(0, 8_000, 8_000, 10_000, 5.0 * at)
        queries += 10_000
        trust.scraped(0, queries, 0.0, 5.0 * at)  # counters that would say: no hits at all
    assert trust.factors[0] == 1.0


def test_a_restart_is_noticed_and_teaches_nothing() -> None:
    trust = Trust(1)
    assert trust.scraped(0, 5e6, 4e6, 0.0) is False
    trust.sent(0, 50_000, 60_000)
    assert trust.scraped(0, 1e3, 0.0, 5.0) is True
    trust.sent(0, 50_000, 60_000)
    assert trust.scraped(0, None, None, 10.0) is False
    assert trust.scraped(0, 2e3, 0.0, 15.0) is False
    assert trust.factors[0] == 1.0


def test_silence_brings_belief_back() -> None:
    trust = Trust(1, half_life_s=60.0)
    trust.scraped(0, 0.0, 0.0, 0.0)
    for at in range(1, 20):
        trust.sent(0, 50_000, 60_000)
        trust.scraped(0, 60_000.0 * at, 0.0, float(at))
    assert trust.factors[0] == FLOOR
    trust.scraped(0, 60_000.0 * 19, 0.0, 1000.0)
    assert trust.factors[0] > 0.95


def test_reset_forgets_a_slot() -> None:
    trust = Trust(2)
    for at in range(10):
        trust.answered(1, 50_000, 0, 60_000, float(at))
    trust.scraped(1, 100.0, 50.0, 10.0)
    trust.reset(1)
    assert list(trust.factors) == [1.0, 1.0]
    assert trust.scraped(1, 10.0, 5.0, 11.0) is False


def test_the_clock_may_stand_or_go_back() -> None:
    trust = Trust(1)
    for now in (10.0, 10.0, 5.0, 20.0, 0.0, 30.0):
        trust.answered(0, 50_000, 25_000, 60_000, now)
    assert FLOOR <= trust.factors[0] <= 1.0


def test_bytes_per_token_converges_within_its_clamp() -> None:
    learned = BytesPerToken()
    assert learned.value == 4.0
    for _ in range(300):
        learned.observe(31_000, 10_000)
        learned.observe(0, 500)
        learned.observe(500, 0)
    assert learned.value == pytest.approx(3.1, abs=0.01)
    for _ in range(3000):
        learned.observe(10**6, 10)
    assert learned.value == 16.0
    for _ in range(6000):
        learned.observe(1, 10**6)
    assert learned.value == 1.0
    assert BytesPerToken(0.1).value == 1.0


def test_one_odd_answer_moves_it_little() -> None:
    learned = BytesPerToken()
    for _ in range(200):
        learned.observe(40_000, 10_000)
    learned.observe(10_000, 10_000)
    assert 3.9 < learned.value < 4.0


def test_blocks_for() -> None:
    assert blocks_for(392_000, 4.0, 128) == 12_250
    assert blocks_for(3, 4.0, 128) == 1
