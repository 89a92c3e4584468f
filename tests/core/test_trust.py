"""`_core.trust` against its twin over random histories, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core import twin_trust
from warmlane._core import trust as core

SLOTS = 3
TOKENS = st.sampled_from([0.0, 1.0, 900.0]) | st.floats(-10, 1e6)
COUNTS = st.none() | st.floats(0, 1e7)
STEPS = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-2, 1e4)
EVENTS = st.one_of(
    st.tuples(st.just("sent"), TOKENS, TOKENS),
    st.tuples(st.just("answered"), TOKENS, TOKENS, TOKENS),
    st.tuples(st.just("scraped"), COUNTS, COUNTS),
    st.tuples(st.just("reset")),
)


@given(
    st.lists(st.tuples(EVENTS, st.integers(0, SLOTS - 1), STEPS), max_size=60),
    st.floats(0.1, 1000),
    st.floats(1.0, 1e5),
    st.integers(0, 6),
)
def test_equals_the_twin(
    history: list[tuple[Any, int, float]], half_life: float, prior: float, least: int
) -> None:
    args = {"half_life_s": half_life, "prior_tokens": prior, "min_samples": least}
    ours, twin = core.Trust(SLOTS, **args), twin_trust.Trust(SLOTS, **args)  # type: ignore[arg-type]
    now = 0.0
    for (name, *values), slot, step in history:
        now += step
        timed = [now] if name in ("answered", "scraped") else []
        want = getattr(twin, name)(slot, *values, *timed)
        assert getattr(ours, name)(slot, *values, *timed) == want
        assert list(ours.factors) == pytest.approx(list(twin.factors), rel=1e-12)
        assert all(core.FLOOR <= factor <= 1.0 for factor in ours.factors)


def test_slots_are_checked_and_the_column_stays_where_it_is() -> None:
    trust = core.Trust(2)
    calls: list[tuple[str, tuple[float, ...]]] = [
        ("sent", (1, 1)),
        ("answered", (1, 1, 1, 1)),
        ("scraped", (1, 1, 1)),
        ("reset", ()),
    ]
    for slot in (-1, 2):
        for name, args in calls:
            with pytest.raises(IndexError, match=f"slot {slot} of 2"):
                getattr(trust, name)(slot, *args)
    with pytest.raises(BufferError):
        trust.factors.append(1.0)


@pytest.mark.parametrize(
    "bad", [{"slots": 0}, {"half_life_s": 0.0}, {"prior_tokens": 0.0}, {"slots": 1 << 30}]
)
def test_bad_parameters(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        core.Trust(**bad)


def test_no_memory_is_an_error_and_the_next_one_works() -> None:
    core._fail_alloc_after(0)
    with pytest.raises(MemoryError):
        core.Trust(4)
    core.Trust(4).sent(3, 1.0, 1.0)
