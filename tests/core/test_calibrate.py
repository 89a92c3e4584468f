"""The yardstick loops agree with their twin and refuse a ring that would leave its bounds."""

from __future__ import annotations

from array import array

import pytest

from tests.core import calibrate_twin as twin
from warmlane._core.calibrate import follow, random_ring


@pytest.mark.parametrize("length", [1, 2, 3, 17, 1000])
def test_ring_is_one_cycle_and_equals_the_twin(length: int) -> None:
    ring = random_ring(length, 7)
    assert list(ring) == twin.random_ring(length, 7)
    assert follow(ring, length) == 0
    if length > 1:
        assert all(follow(ring, steps) != 0 for steps in range(1, length))


@pytest.mark.parametrize("steps", [0, 1, 5, 999])
def test_follow_equals_the_twin(steps: int) -> None:
    ring = random_ring(100)
    assert follow(ring, steps, 3) == twin.follow(list(ring), steps, 3)


@pytest.mark.parametrize("ring", [array("I"), array("I", [1, 2]), array("i", [0])])
def test_follow_refuses_a_bad_ring(ring: array[int]) -> None:
    with pytest.raises(ValueError, match="ring"):
        follow(ring, 1)


def test_ring_refuses_a_bad_length() -> None:
    with pytest.raises(ValueError, match="length"):
        random_ring(0)
