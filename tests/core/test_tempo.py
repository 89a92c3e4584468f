"""What the price learns of decoding: equal to the twin, true to what happened, hard to fool."""

from __future__ import annotations

from array import array
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.twin_tempo import TwinTempo, contrast
from warmlane._core.price import Price

BASE_S, UNIT_S, PREFILL_S = 0.016, 43e-6, 51e-6  # of a 32B model on two H100
samples = st.lists(
    st.tuples(
        st.integers(8, 2000),
        st.floats(1e-3, 300),
        st.floats(1, 200),
        st.floats(0, 5e5),
        st.floats(0, 5e5),
    ),
    max_size=80,
)


@given(samples=samples, seconds=st.floats(1e-6, 1e-3))
def test_equal_to_the_twin(
    samples: list[tuple[int, float, float, float, float]], seconds: float
) -> None:
    price, twin = Price(seconds_per_token=seconds), TwinTempo(seconds)
    for output, took, running, context, prefilled in samples:
        price.streamed(2, output, took, (running, context, prefilled))
        steps = output - 1
        batch = (1e-3 * context + 0.2 * running) / 1000
        twin.learn(took / steps, batch, prefilled / steps / 1000)
    factor, base, load, stall, count = price.tempo(2)
    assert (factor, count) == (1.0, len(samples))
    if samples:
        found = (base, load * 1000, stall * 1000)
        assert found == pytest.approx(tuple(twin.theta), rel=1e-5, abs=1e-7)


def answers(
    price: Price,
    slot: int,
    slowness: float,
    *,
    count: int = 300,
    batches: tuple[float, float] = (2, 40),
    scale: float = 1.0,
    pace: float = 1.0,
    fault: float = 0.0,
    seed: int = 3,
) -> None:
    """Answers of a replica that decodes so much slower. fault: share of them that stand still."""
    chance = Random(seed + slot)
    for _ in range(count):
        output, running = chance.randint(8, 600), chance.uniform(*batches)
        context = running * chance.uniform(2_000, 12_000)
        prefilled = output * chance.uniform(0, 300)
        units = 1e-3 * context + 0.2 * running
        step = slowness * (BASE_S + UNIT_S * units) * chance.uniform(0.9, 1.1)
        took = (output - 1) * step + pace * PREFILL_S * prefilled
        if chance.random() < fault:
            took += chance.uniform(5, 60)
        price.streamed(slot, output, scale * took, (running, context, prefilled))


def ticked(price: Price, slots: int, times: int = 2) -> Price:
    for now in range(times):
        price.tick(float(now), slots, 100.0)
    return price


@pytest.mark.parametrize("fault", [0.0, 0.08])
def test_who_decodes_slower_is_found_whatever_else_differs(fault: float) -> None:
    price = Price()
    answers(price, 0, 1.0, fault=fault)
    answers(price, 1, 1.1, fault=fault)
    answers(price, 2, 2.0, fault=fault, batches=(1, 8))  # the slow one has the smaller batches
    answers(price, 3, 0.5, fault=fault, pace=2.0)  # and who prefills slowly may decode quickly
    ticked(price, 4)
    factors = [price.tempo(slot)[0] for slot in range(4)]
    assert factors[:2] == [1.0, 1.0]
    assert factors[2:] == pytest.approx([2.0, 0.5], rel=0.12)
    base, unit, prefill = price.tempo(0)[1:4]
    assert (base, unit, prefill) == pytest.approx((BASE_S, UNIT_S, PREFILL_S), rel=0.15)


@pytest.mark.parametrize("scale", [0.1, 50.0])
def test_hardware_of_any_speed(scale: float) -> None:
    price = Price()
    for slot, slowness in enumerate((1.0, 1.0, 2.0)):
        answers(price, slot, slowness, scale=scale)
    ticked(price, 3)
    assert [price.tempo(slot)[0] for slot in range(2)] == [1.0, 1.0]
    assert price.tempo(2)[0] == pytest.approx(2.0, rel=0.1)
    assert price.tempo(0)[1] == pytest.approx(scale * BASE_S, rel=0.15)


def test_a_change_for_good_is_believed_and_a_bad_minute_is_not() -> None:
    price = Price()
    for slot in range(3):
        answers(price, slot, 1.0)
    answers(price, 2, 8.0, count=10, seed=8)
    assert [ticked(price, 3).tempo(slot)[0] for slot in range(3)] == [1.0, 1.0, 1.0]
    answers(price, 2, 2.0, count=1200, seed=9)
    assert ticked(price, 3, 4).tempo(2)[0] == pytest.approx(2.0, rel=0.1)


def prices(price: Price, slots: int) -> list[float]:
    """Of a prompt of 1,000 tokens on idle replicas that hold nothing."""
    out, zeros = array("d", bytes(8 * slots)), array("d", bytes(8 * slots))
    price.prices(1000.0, zeros, zeros, zeros, zeros, array("B", [1] * slots), out)
    return out.tolist()


def test_what_an_answer_takes_longer_is_charged_as_the_twin_says() -> None:
    price, twins = Price(), [TwinTempo(40e-6) for _ in range(4)]
    usages = [0.2, 0.2, 0.7, 0.95]
    for slot, slowness in enumerate((1.0, 2.0, 1.0, 1.0)):
        answers(price, slot, slowness, count=120)
        answers(_Also(twins[slot]), slot, slowness, count=120)  # type: ignore[arg-type]
        price.holds(slot, 1e6, usages[slot])
        twins[slot].usage = usages[slot]
    ticked(price, 4)
    factors, slower = contrast(twins)
    assert [price.tempo(slot)[0] for slot in range(4)] == pytest.approx(factors)
    found = prices(price, 4)
    wanted = [0.15 * 100.0 * each / price.seconds for each in slower]
    assert [each - found[0] for each in found] == pytest.approx(
        [each - wanted[0] for each in wanted], rel=1e-6, abs=1e-6
    )
    assert found[0] < found[2] < found[1] == pytest.approx(found[3])
    assert prices(ticked(Price(tempo=0.0), 4), 4)[0] == found[0]


class _Also:
    """A twin that hears what a price hears."""

    def __init__(self, twin: TwinTempo) -> None:
        self.twin = twin

    def streamed(
        self, slot: int, output: int, took: float, beside: tuple[float, float, float]
    ) -> None:
        del slot
        running, context, prefilled = beside
        steps, units = output - 1, 1e-3 * context + 0.2 * running
        self.twin.learn(took / steps, units / 1000, prefilled / steps / 1000)


def test_what_the_pace_says_is_not_said_twice() -> None:
    price, chance = Price(), Random(4)
    for slot, slowness in enumerate((1.0, 1.0, 2.2, 2.0)):
        answers(price, slot, slowness)
        for _ in range(60):  # the third one prefills slower, too
            tokens = chance.uniform(100, 20_000)
            price.heard(slot, tokens, (2.2 if slot == 2 else 1.0) * (0.03 + 40e-6 * tokens))
    found = prices(ticked(price, 4), 4)
    assert price.tempo(2)[0] == pytest.approx(2.2, rel=0.1)
    own = price.pace(2)[0] * 1000.0 * (1 + 3.5e-5 * 500)
    assert found[2] == pytest.approx(own, rel=1e-3), "no more than its prefill costs"
    assert found[3] > found[0] == found[1]


def test_what_says_nothing() -> None:
    price = Price(learn=False)
    answers(price, 0, 1.0)
    assert price.tempo(0)[4] == 0
    early = Price()
    for slot in range(3):
        answers(early, slot, 1.0 + slot, count=29)
    assert [ticked(early, 3).tempo(slot)[0] for slot in range(3)] == [1.0, 1.0, 1.0]
    for output, took in ((7, 1.0), (100, 0.0), (100, float("nan")), (float("inf"), 1.0)):
        early.streamed(0, output, took, (2.0, 1000.0, 0.0))
    early.streamed(-1, 100, 1.0, (2.0, 1000.0, 0.0))
    assert early.tempo(0)[4] == 29
    early.forget(0)
    assert early.tempo(0) == pytest.approx((1.0, 0.02, 40e-6, 40e-6, 0))
    assert early.tempo(99) == (1.0, 0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(("true", "learned"), [(2e-5, 2e-5), (4e-3, 4e-3), (1.0, 1e-2)])
@pytest.mark.parametrize("given", [4e-5, 1e-3])
def test_seconds_of_prefill_are_learned_whatever_was_configured(
    true: float, learned: float, given: float
) -> None:
    price, chance = Price(seconds_per_token=given, pair=0.0), Random(6)
    for number in range(400):
        for slot in range(4):
            tokens = chance.uniform(50, 20_000)
            took = (0.03 + true * tokens) * chance.uniform(0.8, 1.3)
            price.heard(slot, tokens, took * (30.0 if number % 12 == 7 else 1.0))
    assert price.seconds == given
    seen = [ticked(price, 4, times).seconds for times in (2, 10, 120)]
    assert sorted(seen, reverse=learned < given) == seen, "step by step"
    limit = 5e-3 if true == 1.0 else learned  # a pace is at most 5 s a thousand tokens
    assert seen[-1] == pytest.approx(limit, rel=0.25)
    quiet = ticked(Price(seconds_per_token=given, learn=False), 4, 50)
    assert quiet.seconds == given


def test_first_tokens_that_waited_for_memory_say_nothing_of_prefill() -> None:
    price, chance = Price(pair=0.0), Random(7)
    for slot in range(3):
        price.holds(slot, 100_000.0, 0.3)  # 60,000 tokens are free
        for _ in range(400):
            tokens = chance.uniform(50, 150_000)
            waits = 200e-6 * max(0.0, tokens - 60_000)
            price.heard(slot, tokens, 0.03 + 20e-6 * tokens + waits)
    assert ticked(price, 3, 120).seconds == pytest.approx(20e-6, rel=0.05)
    assert price.pace(0)[2] > 60e-6, "what is sent there waits that long all the same"
