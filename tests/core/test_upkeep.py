"""Counts that every request adds to, against their twin."""

from __future__ import annotations

import random
from array import array

import pytest

from tests.core import twin_upkeep as twin
from warmlane._core import upkeep


class Placements(upkeep.Placements):
    def __init__(self, slots: int, mean: float) -> None:
        self.placed_tokens = array("d", bytes(8 * slots))
        self.mean_uncached_tokens = mean
        self._fresh_until = float("inf")
        self.expired: list[float] = []

    def _expire_loads(self, now: float) -> None:
        self.expired.append(now)
        self._fresh_until = now + 3.0


def test_placements_and_their_twin_agree() -> None:
    rng, seen = random.Random(1), []

    def expire(now: float) -> float:
        seen.append(now)
        return now + 3.0

    real, twins = Placements(4, 512.0), twin.Placements(4, 512.0, expire)
    for step in range(2_000):
        if step == 100:
            real._fresh_until = twins.fresh_until = 120.0
        slot, tokens, now = rng.randrange(4), rng.random() * 5_000, float(step)
        for each in (real, twins):
            each.freshen(now)
            each.placed(slot, tokens)
        assert list(real.placed_tokens) == twins.placed_tokens
        assert real.mean_uncached_tokens == twins.mean_uncached_tokens
    assert real.expired == seen and seen[:2] == [120.0, 123.0]


def test_a_slot_that_does_not_exist_is_refused() -> None:
    real = Placements(2, 0.0)
    for slot in (-1, 2):
        with pytest.raises(IndexError):
            real.placed(slot, 1.0)
    assert list(real.placed_tokens) == [0.0, 0.0] and real.mean_uncached_tokens == 0.0


def test_an_owner_that_cannot_expire_is_told() -> None:
    bare = upkeep.Placements()
    bare._fresh_until = 1.0
    bare.freshen(0.5)
    with pytest.raises(NotImplementedError):
        bare.freshen(1.0)


def test_records_and_their_twin_agree() -> None:
    rng, real, twins = random.Random(2), upkeep.Records(), twin.Records()
    for _ in range(1_000):
        slot = rng.randrange(5)
        if rng.random() < 0.2:
            record, other = real._record(slot), twins.records.setdefault(slot, twin.Record())
            record.row = other.row = 3
            record.trial = other.trial = rng.randrange(4)
        real.ok(slot)
        twins.ok(slot)
        for number, other in twins.records.items():
            record = real._records[number]
            found = twin.Record(record.ok, record.row, record.trial, record.until)
            assert found == other
    assert set(real._records) == set(twins.records)


def test_requests_are_counted() -> None:
    tally = upkeep.Tally()
    for _ in range(3):
        tally.request()
    assert tally._requests == 3
