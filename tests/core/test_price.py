"""Prices equal those of the twin, and say what they are meant to say."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.twin_price import TwinPrice
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
)
def test_equal_to_the_twin(
    rows: list[Row],
    prompt: float,
    history: list[tuple[float, float, float]],
    tie: float,
    others: tuple[float, float],
) -> None:
    price, twin, now = Price(), TwinPrice(), 0.0
    for each in (price, twin):
        each.damp(tie)
        each.others(*others)
    for gap, length, share in history:
        now += gap
        for each in (price, twin):
            each.placed(length, length * share)
            each.tick(now, 4, 100.0)
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


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="negative"):
        Price(pair=-1)
    with pytest.raises(ValueError, match="range"):
        Price(rho_cap=1.0)
    price, column = Price(), array("d", [0.0])
    with pytest.raises(ValueError, match="waiting has 1"):
        two = array("d", [0.0, 0.0])
        price.prices(5, two, column, two, two, array("B", [1, 1]), two)
    with pytest.raises(TypeError):
        price.prices(5, array("i", [1]), column, column, column, array("B", [1]), column)
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
