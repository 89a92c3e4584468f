"""`_core.journal` against its twin, its bound, and what is read back."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.twin_journal import TwinJournal
from warmlane._core import journal
from warmlane._core.journal import Journal
from warmlane.router.share_wire import records

KEYS = st.lists(st.integers(1, 2**64 - 1), max_size=40)
SLOTS = st.integers(0, 70_000)
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("chain"), SLOTS, st.booleans(), KEYS),
        st.tuples(st.just("charge"), SLOTS, st.booleans(), st.integers(0, 2**33)),
        st.tuples(st.just("take"), st.just(0), st.just(False), st.just(0)),
        st.tuples(st.just("no memory"), st.just(0), st.just(False), KEYS),
    ),
    max_size=40,
)


@given(CALLS, st.integers(8, 1000))
def test_equals_the_twin(calls: list[tuple[str, int, bool, object]], max_bytes: int) -> None:
    real, twin = Journal(max_bytes), TwinJournal(max_bytes)
    for what, slot, tokens, value in calls:
        if what == "chain":
            assert isinstance(value, list)
            assert real.chain(slot, tokens, array("Q", value)) == twin.chain(slot, tokens, value)
        elif what == "charge":
            assert isinstance(value, int)
            assert real.charge(slot, tokens, value) == twin.charge(slot, tokens, value)
        elif what == "take":
            assert real.take() == twin.take()
        else:  # without memory a record is dropped, and nothing else is lost
            assert isinstance(value, list)
            journal._fail_allocation_after(0)
            try:
                noted = real.chain(slot, tokens, array("Q", value))
            finally:
                journal._fail_allocation_after(-1)
            if noted:
                assert twin.chain(slot, tokens, value)
            else:
                twin.dropped += 1
        assert (len(real), real.dropped) == (len(twin), twin.dropped)
    told = list(twin.records)
    found = [(a, b, c, list(d)) for a, b, c, d in records(real.take())]
    assert found == told


def test_what_cannot_be_read() -> None:
    whole = Journal(1000)
    whole.chain(3, False, array("Q", [1, 2, 3]))
    data = whole.take()
    assert [(a, b, c, list(d)) for a, b, c, d in records(data)] == [(3, 0, 3, [1, 2, 3])]
    with pytest.raises(ValueError, match="ends early"):
        list(records(data[:-8]))
    with pytest.raises(ValueError, match="ends early"):
        list(records(array("Q", [7 << 16]).tobytes()))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        Journal(7)
    with pytest.raises(TypeError, match="uint64"):
        Journal(8).chain(0, False, array("i", [1]))


def test_a_large_array_is_given_back() -> None:
    """A burst must not hold its memory for ever; the journal goes on all the same."""
    real = Journal(1 << 22)
    keys = array("Q", range(1, 200_001))
    assert real.chain(1, True, keys)
    assert len(real.take()) == 8 * 200_001
    assert real.chain(2, True, keys[:5]) and len(real.take()) == 48
