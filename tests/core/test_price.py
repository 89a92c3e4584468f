"""Prices equal those of the twin, and say what they are meant to say."""

from __future__ import annotations

from array import array
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.twin_price import TwinPace, TwinPrice
from warmlane._core import price as core
from warmlane._core.price import Price

Row = tuple[float, float, float, int, float]
slots = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.floats(0, 1e6),
        st.integers(0, 300).map(float),
        st.integers(0, 1),
        st.floats(0, 1e7),
    ),
    min_size=1,
    max_size=12,
)


def asked(price: Price, prompt: float, rows: list[Row]) -> list[float]:
    out = array("d", bytes(8 * len(rows)))
    hits = array("d", [row[0] * prompt for row in rows])
    waiting, running = array("d", [row[1] for row in rows]), array("d", [row[2] for row in rows])
    placed, mask = array("d", [row[4] for row in rows]), array("B", [row[3] for row in rows])
    greatest = price.prices(prompt, hits, waiting, running, placed, mask, out)
    kept = [value for value, row in zip(out, rows, strict=True) if row[3]]
    assert greatest == max(kept, default=0.0)
    return out.tolist()


@given(
    rows=slots,
    prompt=st.floats(1, 200_000),
    history=st.lists(st.tuples(st.floats(0, 5), st.floats(1, 1e5), st.floats(0, 1)), max_size=20),
    tie=st.sampled_from([0.0, 0.5, 2.0]),
    others=st.tuples(st.floats(0, 100), st.floats(0, 1e5)),
    far=st.lists(st.tuples(st.integers(0, 11), st.floats(0, 1e4)), max_size=4),
    caches=st.lists(st.tuples(st.integers(0, 11), st.floats(0, 1e6), st.floats(0, 1)), max_size=12),
    firsts=st.lists(st.floats(0, 100), max_size=60),
)
def test_equal_to_the_twin(
    rows: list[Row],
    prompt: float,
    history: list[tuple[float, float, float]],
    tie: float,
    others: tuple[float, float],
    far: list[tuple[int, float]],
    caches: list[tuple[int, float, float]],
    firsts: list[float],
) -> None:
    price, twin, now = Price(), TwinPrice(), 0.0
    for each in (price, twin):
        each.damp(tie)
        each.others(*others)
        for slot, tokens in far:
            each.move(slot, tokens)
        for slot, capacity, usage in caches:
            each.holds(slot, capacity, usage)
    for gap, length, share in history:
        now += gap
        for each in (price, twin):
            each.placed(length, length * share)
            each.tick(now, 4, 100.0, 50.0)
    for seconds in firsts:  # of one replica: none to compare its pace with
        price.heard(0, 1000.0, seconds)
        twin.heard(seconds)
    assert price.ahead == pytest.approx(twin.ahead, rel=1e-9)
    assert price.work == pytest.approx(twin.work, rel=1e-9)
    assert price.reuse == pytest.approx(twin.reuse, abs=1e-9)
    found = asked(price, prompt, rows)
    expected = twin.prices(
        prompt,
        [row[0] * prompt for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[4] for row in rows],
        [row[3] for row in rows],
    )
    for value, wanted in zip(found, expected, strict=True):
        if wanted is not None:
            assert value == pytest.approx(wanted, rel=1e-9)


def test_a_hit_wins_until_the_line_costs_more_than_it_saves() -> None:
    price = Price()
    home, other = asked(price, 10_000, [(0.9, 0, 0, 1, 0), (0.0, 0, 0, 1, 0)])
    assert home < other
    home, other = asked(price, 10_000, [(0.9, 100_000, 0, 1, 0), (0.0, 0, 0, 1, 0)])
    assert home > other


def test_under_backlog_avoidable_work_gets_dearer() -> None:
    def gap(price: Price) -> float:
        home, other = asked(price, 10_000, [(0.9, 50_000, 0, 1, 0), (0.0, 50_000, 0, 1, 0)])
        return other - home

    busy = Price()
    for second in range(60):
        for _ in range(20):
            busy.placed(10_000, 5_000)
        busy.tick(float(second), 2, 100.0)
    assert gap(busy) > 2 * gap(Price())


@given(rows=slots, prompt=st.floats(1, 200_000))
def test_terms_sum_to_the_price(rows: list[Row], prompt: float) -> None:
    price = Price(distance=0.0)
    price.move(0, 700.0)
    price.holds(0, 1e5, 0.95)
    for now in (0.0, 1.0, 2.0):
        price.placed(prompt, 0.0)
        price.tick(now, 4, 100.0, 20.0)
    hits, mask = array("d", [row[0] * prompt for row in rows]), array("B", [r[3] for r in rows])
    waiting, running, placed = (array("d", [row[at] for row in rows]) for at in (1, 2, 4))
    told = price.terms(prompt, hits, waiting, running, placed, mask)
    for value, parts, row in zip(asked(price, prompt, rows), told, rows, strict=True):
        if row[3]:
            assert sum(parts.values()) == pytest.approx(value, rel=1e-12)
        else:
            assert not any(parts.values())
    assert told[0]["zone"] == 700.0 * rows[0][3]


def busy_with(requests: float) -> Price:
    """Ten arrivals a second and so many requests open: one stays requests / 10 seconds."""
    price = Price()
    for second in range(60):
        for _ in range(10):
            price.placed(2_000, 0)
        price.tick(float(second), 2, 500.0, requests)
    return price


def test_a_full_cache_costs_the_wait_for_room() -> None:
    price, twin = busy_with(400.0), TwinPrice()
    price.holds(0, 200_000, 0.97)
    price.holds(1, 200_000, 0.5)
    free: list[Row] = [(0.0, 0, 50, 1, 0.0)] * 3  # of the third nothing is known
    full, half, unknown = asked(price, 2_000, free)
    assert half == unknown < full
    # 14,000 of the reserve and 2,000 of the prompt are missing; 194,000 come free in 40 s.
    wait_s = 16_000 / 194_000 * 40
    assert full - half == pytest.approx(wait_s / twin.c["seconds_per_token"], rel=0.05)
    price.forget(0)
    assert len(set(asked(price, 2_000, free))) == 1


def test_where_caches_are_full_new_tokens_are_dear_everywhere() -> None:
    def gap(usage: float) -> float:
        price = busy_with(400.0)
        for slot in (0, 1):
            price.holds(slot, 200_000, usage)
        rows: list[Row] = [(0.8, 5_000, 50, 1, 0.0), (0.0, 5_000, 50, 1, 0.0)]
        home, other = asked(price, 10_000, rows)
        return other - home

    assert gap(0.97) > 2 * gap(0.5)


def test_with_the_mean_batch_grows_what_a_miss_costs_and_not_what_a_lead_costs() -> None:
    def costs(running: float) -> tuple[float, float]:
        price = Price(decode=0.0)
        home, other = asked(price, 10_000, [(0.8, 0, running, 1, 0), (0.0, 0, running, 1, 0)])
        few, many = asked(price, 10_000, [(0.0, 0, running, 1, 0), (0.0, 0, running + 40, 1, 0)])
        return other - home, many - few

    miss, lead = zip(*(costs(running) for running in (30.0, 90.0)), strict=True)
    assert miss[1] > 2 * miss[0]
    assert lead == (0.0, 0.0)
    idle, busy = asked(Price(decode=0.0), 10_000, [(0.0, 0, 0, 1, 0), (0.0, 0, 12, 1, 0)])
    assert idle < busy  # up to so many it does count who runs where


def test_more_sequences_cost_only_where_more_are_than_elsewhere() -> None:
    def costs(*running: float, **constants: float) -> list[float]:
        rows: list[Row] = [(0.0, 0, each, 1, 0) for each in running]
        return asked(Price(interference=0.0, **constants), 1_000, rows)

    assert len(set(costs(30, 33, 27))) == 1, "within a tenth of the mean"
    even, many = costs(30, 60)
    assert many - even == pytest.approx(1.5 * (60 - 1.1 * 45) * 256 * (1e-3 * (1_000 + 128) + 0.2))
    assert costs(30, 60, slack=1.4)[0] == costs(30, 60, slack=1.4)[1]
    assert costs(30, 33, slack=0.0)[0] < costs(30, 33, slack=0.0)[1]
    assert costs(0, 1)[0] < costs(0, 1)[1], "a lone request counts"


def test_the_longest_prompts_avoid_a_busy_replica_no_more_than_long_ones() -> None:
    def lead(prompt: float, **constants: float) -> float:
        price = Price(decode=0.0, pair=0.0, **constants)
        idle, busy = asked(price, prompt, [(0.0, 0, 0, 1, 0), (0.0, 0, 10, 1, 0)])
        return busy - idle

    assert lead(6_000) == pytest.approx(0.3 * 10 * 6_000)
    assert lead(100_000) == pytest.approx(lead(12_000)) == pytest.approx(0.3 * 10 * 12_000)
    assert lead(100_000, large=1e9) == pytest.approx(0.3 * 10 * 100_000)


def test_a_zone_is_as_far_as_a_few_typical_requests() -> None:
    def way(length: float, **constants: float) -> float:
        price = Price(decode=0.0, pair=0.0, spread=0.0, **constants)
        price.move(1, 4_000.0)
        for second in range(1_000):
            price.placed(length, 0)
            price.tick(float(second), 2, 100.0)
        near, far = asked(price, length, [(0.0, 0, 0, 1, 0), (0.0, 0, 0, 1, 0)])
        return far - near

    assert way(500) == pytest.approx(4_000 + 4 * 500, rel=0.01)
    assert way(12_000) == pytest.approx(4_000 + 4 * 12_000, rel=0.01)
    assert way(12_000, distance=0.0) == pytest.approx(4_000)


def late(seconds: float, **constants: float) -> Price:
    """Prompts of 1,000 new tokens, the first token of each so late."""
    price = Price(decode=0.0, **constants)
    for _ in range(1000):
        price.placed(1_000, 0)
        price.heard(0, 1_000.0, seconds)
    return price


def test_in_overload_large_prompts_go_where_fewer_wait() -> None:
    # 40 large ones in line there, 100 small ones here; a small one goes where the line is shorter.
    rows: list[Row] = [(0.0, 120_000, 40, 1, 0), (0.0, 100_000, 100, 1, 0)]

    def home(price: Price, prompt: float) -> int:
        prices = asked(price, prompt, rows)
        return prices.index(min(prices))

    assert home(late(20.0), 50_000) == 0
    assert home(late(20.0), 100) == 1
    for calm in (late(1.5), late(20.0, overload=0.0), late(20.0, late_s=30.0)):
        assert home(calm, 50_000) == home(calm, 100) == 1
    here, there = asked(late(20.0, pair=0.0), 50_000, [(0.0, 1e5, 0, 1, 0), (0.0, 1e5, 9, 1, 0)])
    assert there - here == pytest.approx(0.7 * 9 * 50_000), "of the whole prompt"
    few = asked(late(20.0), 50_000, [(0.0, 4_000, 40, 1, 0), (0.0, 0, 100, 1, 0)])
    assert few[0] > few[1], "late for another reason: the line is short"


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="negative"):
        Price(pair=-1)
    with pytest.raises(ValueError, match="range"):
        Price(rho_cap=1.0)
    with pytest.raises(ValueError, match="reserve"):
        Price(reserve=1.0)
    for bad in ((0, -1.0, 0.5), (0, float("inf"), 0.5), (0, 1.0, 1.1), (-1, 1.0, 0.5)):
        with pytest.raises(ValueError, match="out of range"):
            Price().holds(*bad)
    price, column = Price(), array("d", [0.0])
    with pytest.raises(ValueError, match="waiting has 1"):
        two = array("d", [0.0, 0.0])
        price.prices(5, two, column, two, two, array("B", [1, 1]), two)
    with pytest.raises(TypeError):
        whole: Any = array("i", [1])
        price.prices(5, whole, column, column, column, array("B", [1]), column)
    with pytest.raises(ValueError, match="finite"):
        endless = array("d", [float("inf")])
        price.prices(5, column, endless, column, column, array("B", [1]), column)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_others_do_is_checked(value: float) -> None:
    price = Price()
    with pytest.raises(ValueError, match="share"):
        price.damp(value)
    for rates in ((value, 0.0), (0.0, value)):
        with pytest.raises(ValueError, match="others"):
            price.others(*rates)


@given(
    samples=st.lists(st.tuples(st.floats(0, 2e5), st.floats(0, 60)), max_size=80),
    seconds=st.floats(1e-6, 1e-3),
)
def test_the_pace_equals_its_twin(samples: list[tuple[float, float]], seconds: float) -> None:
    price, twin = Price(seconds_per_token=seconds), TwinPace(seconds * 1000)
    for tokens, took in samples:
        price.heard(3, tokens, took)
        twin.learn(tokens / 1000, took)
    _, base, slope, count = price.pace(3)
    assert count == len(samples)
    if samples:
        assert base == pytest.approx(twin.theta[0], rel=1e-6, abs=1e-9)
        assert slope * 1000 == pytest.approx(twin.theta[1], rel=1e-6, abs=1e-9)


def taught(slowness: list[float], outliers: bool = False) -> Price:
    """Replicas of unequal pace, each with 300 first tokens heard; ticked."""
    price, chance = Price(), Random(5)
    for number in range(300):
        for slot, factor in enumerate(slowness):
            tokens = chance.uniform(50, 20_000)
            took = factor * (0.03 + 40e-6 * tokens) * chance.uniform(0.8, 1.3)
            if outliers and number % 12 == 7:
                took += 30.0
            price.heard(slot, tokens, took)
    price.tick(0.0, len(slowness), 100.0)
    price.tick(1.0, len(slowness), 100.0)
    return price


@pytest.mark.parametrize("outliers", [False, True])
def test_a_slow_replica_is_dearer_by_as_much(outliers: bool) -> None:
    price = taught([1.0, 1.05, 2.5, 0.5], outliers)
    factors = [price.pace(slot)[0] for slot in range(4)]
    assert factors[:2] == [1.0, 1.0]
    assert factors[2] == pytest.approx(2.5, rel=0.2)
    assert factors[3] == pytest.approx(0.5, rel=0.2)
    line: list[Row] = [(0.0, 10_000, 0, 1, 0.0)] * 4
    prices = asked(price, 1_000, line)
    assert prices[3] < prices[0] == prices[1] < prices[2]
    twin = TwinPrice()
    twin.factors = dict(enumerate(factors))
    twin.tick(0.0, 4, 100.0)
    twin.tick(1.0, 4, 100.0)
    wanted = twin.prices(1_000, [0.0] * 4, [10_000.0] * 4, [0.0] * 4, [0.0] * 4, [1] * 4)
    assert prices == pytest.approx(wanted)


def test_predictions_are_judged_by_what_was_known_before() -> None:
    price, twin = Price(), TwinPace(0.04)
    chance, told, foretold, took, missed = Random(9), 0, 0.0, 0.0, 0.0
    for number in range(400):
        tokens = chance.uniform(50, 20_000)
        seconds = (0.03 + 40e-6 * tokens) * chance.uniform(0.8, 1.3)
        if number >= 30:
            predicted = twin.theta[0] + twin.theta[1] * tokens / 1000
            told, foretold, took = told + 1, foretold + predicted, took + seconds
            missed += abs(seconds - predicted)
        twin.learn(tokens / 1000, seconds)
        price.heard(2, tokens, seconds)
    assert price.foretold(2) == pytest.approx((told, foretold, took, missed))
    assert missed < 0.2 * took
    assert price.foretold(1) == price.foretold(7) == (0, 0.0, 0.0, 0.0)
    price.forget(2)
    assert price.foretold(2) == (0, 0.0, 0.0, 0.0)


def test_what_is_slow_far_beyond_reason_is_believed_four_times() -> None:
    price = taught([1.0, 1.0, 1.0, 50.0])
    assert price.pace(3)[0] == 4.0
    price.forget(3)
    assert price.pace(3) == (1.0, 0.02, 40e-6, 0)
    assert price.pace(99) == (1.0, 0.0, 0.0, 0)


def test_where_first_tokens_do_not_tell_by_tokens_nobody_is_slow() -> None:
    # Prompts nearly alike on a busy machine: waits of any length, whatever is in line.
    price, chance = Price(), Random(4)
    for _ in range(120):
        for slot in range(8):
            price.heard(slot, chance.uniform(200, 400), chance.expovariate(10.0))
    price.tick(0.0, 8, 100.0)
    price.tick(1.0, 8, 100.0)
    slopes = sorted(price.pace(slot)[2] for slot in range(8))
    assert slopes[-1] > 3 * slopes[3], "else this shows nothing"
    assert [price.pace(slot)[0] for slot in range(8)] == [1.0] * 8


def test_few_samples_and_switched_off_say_nothing() -> None:
    price = Price(learn=False)
    for _ in range(100):
        price.heard(0, 1e4, 0.1)
        price.heard(1, 1e4, 5.0)
    assert price.pace(0)[3] == 0
    early = Price()
    for _ in range(29):
        early.heard(0, 1e4, 0.1)
        early.heard(1, 1e4, 5.0)
    for now in (0.0, 1.0):
        early.tick(now, 2, 100.0)
    assert [early.pace(slot)[0] for slot in (0, 1)] == [1.0, 1.0]
    early.heard(0, -1.0, -1.0)
    early.heard(0, float("nan"), 1.0)
    assert early.pace(0)[3] == 29


def test_a_failed_allocation_leaves_the_price_whole() -> None:
    price = Price()
    for fail_at in range(3):
        core._fail_alloc_after(fail_at)
        with pytest.raises(MemoryError):
            price.heard(5, 1000.0, 0.1)
    core._fail_alloc_after(-1)
    price.heard(5, 1000.0, 0.1)
    assert price.pace(5)[3] == 1
    with pytest.raises(ValueError, match="slots"):
        price.heard(1 << 20, 1000.0, 0.1)
