"""Passive ejection: what sends a replica out, for how long, and how it comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmlane.router.config import Ejection
from warmlane.router.health import Ejector

SETTINGS = Ejection(failures=3, min_requests=10, window_s=10.0, base_s=4.0, max_s=20.0)


def fail(ejector: Ejector, slot: int, now: float, times: int, members: int = 4) -> list[float]:
    return [ejector.fault(slot, now, 0.5, members) for _ in range(times)]


def test_failures_in_a_row_eject() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    assert fail(ejector, 1, 0.0, 4) == [0.0, 0.0, 4.0, 0.0]
    assert ejector.is_out(1)
    assert not ejector.is_out(0)


def test_a_good_answer_starts_the_row_anew() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    for _ in range(3):
        fail(ejector, 1, 0.0, 2)
        ejector.ok(1)
    assert ejector.ejected == 0


def test_a_share_of_failures_ejects_without_a_row() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    out = []
    for _ in range(8):
        ejector.ok(1)
        out += fail(ejector, 1, 0.0, 1)
    assert out.index(4.0) == 4  # the tenth request: half of at least ten


def test_the_window_forgets() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    for step in range(30):
        now = step * 5.0
        ejector.due(now)
        ejector.ok(1)
        assert fail(ejector, 1, now, 2) == [0.0, 0.0]  # 2 of 3, but few in any window


def test_back_off_doubles_up_to_its_limit_and_jitter_spreads() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    now, lengths = 0.0, []
    for _ in range(5):
        seconds = max(fail(ejector, 1, now, 3))
        lengths.append(seconds)
        now += seconds
        assert ejector.due(now) == [1]
    assert lengths == [4.0, 8.0, 16.0, 20.0, 20.0]
    early, late = Ejector(SETTINGS, 0.0), Ejector(SETTINGS, 0.0)
    for rand, each in ((0.0, early), (1.0, late)):
        assert [each.fault(1, 0.0, rand, 4) for _ in range(3)][-1] == 4.0 * (0.75 + 0.5 * rand)


def test_on_trial_one_fault_is_enough() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    fail(ejector, 1, 0.0, 3)
    assert ejector.due(3.9) == []
    assert ejector.due(4.0) == [1]
    assert fail(ejector, 1, 4.0, 1) == [8.0]
    assert ejector.due(12.0) == [1]
    for _ in range(3):
        ejector.ok(1)
    assert fail(ejector, 1, 12.0, 2) == [0.0, 0.0]


def test_quiet_windows_take_the_back_off_down() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    fail(ejector, 1, 0.0, 3)
    now = 4.0
    ejector.due(now)
    for _ in range(3):
        ejector.ok(1)
    for _ in range(4):
        now += 5.0
        ejector.due(now)
    assert max(fail(ejector, 1, now, 3)) == 4.0


@pytest.mark.parametrize(("members", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)])
def test_the_ejected_share_is_capped(members: int, most: int) -> None:
    ejector = Ejector(SETTINGS, 0.0)
    for slot in range(members):
        fail(ejector, slot, 0.0, 10, members)
    assert ejector.ejected == most


def test_a_slot_that_left_is_forgotten() -> None:
    ejector = Ejector(SETTINGS, 0.0)
    fail(ejector, 1, 0.0, 3)
    ejector.forget(1)
    assert ejector.ejected == 0
    assert ejector.due(100.0) == []
    assert fail(ejector, 1, 100.0, 3) == [0.0, 0.0, 4.0]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["ok", "fault", "tick"])), max_size=300)
)
def test_never_more_than_the_share_and_everyone_returns(steps: list[tuple[int, str]]) -> None:
    ejector = Ejector(SETTINGS, 0.0)
    now = 0.0
    for slot, what in steps:
        if what == "ok":
            ejector.ok(slot)
        elif what == "fault":
            seconds = ejector.fault(slot, now, 0.5, 6)
            assert 0.0 <= seconds <= SETTINGS.max_s * 1.25
        else:
            now += 1.0
            ejector.due(now)
        assert ejector.ejected <= 3
    ejector.due(now + SETTINGS.max_s * 1.25)
    assert ejector.ejected == 0
