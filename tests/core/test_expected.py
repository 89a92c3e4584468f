"""Predicted moments beside their twin: two routers with the same requests, one with each.

What a compiled course leaves here is compared in tests/envoy/test_course.py.
"""

from __future__ import annotations

import gc
import random
import sys
from array import array
from typing import Any

import pytest

from tests.core import twin_expected
from warmlane._core import expected as core
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.types import Kind, Outcome, Request

OK = Outcome()
RATES = {"prefill_tokens_per_s": 1600.0, "output_tokens_per_s": 64.0}


class Side:
    """One router of a single replica, and what is predicted of it."""

    def __init__(self, kind: Any, most: int = 1_000_000) -> None:
        self.router = Router(from_data({"pools": [{"replicas": ["http://10.0.0.1:80"]}]}))
        self.lane = self.router.lanes["default"]
        self.pool = self.lane.pool
        learned = self.pool.pace.tokens_per_s
        metrics = self.router.metrics
        self.expected = kind(self.lane, 0, learned, metrics, OK, most=most, **RATES)

    def send(self, number: int, size: int, now: float, end: bool) -> int:
        prompt = number.to_bytes(4, "little") * size
        decision = self.router.decide(Request(kind=Kind.COMPLETIONS, prompt=prompt), now, 1)
        self.router.sent(decision.ticket, 0, now)
        self.expected.watch(decision.ticket, now, end)
        return decision.ticket

    def state(self) -> list[Any]:
        ledger = self.pool.ledger
        columns = (ledger.requests, ledger.prefill_tokens, ledger.decode_tokens, ledger.running)
        told = [list(column[:1]) for column in columns]
        waiting = len(self.expected)
        return [*told, ledger.stale_events, waiting, self.router.metrics.snapshot()]


def sides(most: int = 1_000_000) -> tuple[Side, Side]:
    return Side(core.Expected, most), Side(twin_expected.Expected, most)


@pytest.mark.parametrize("seed", range(8))
def test_as_the_twin(seed: int) -> None:
    rng = random.Random(seed)
    pair = sides(most=rng.choice([20, 1_000_000]))
    now, open_tickets = 0.0, []
    for number in range(600):
        now += rng.random()
        act = rng.randrange(8)
        if act < 4:
            size, end = rng.randrange(1, 3000), rng.random() < 0.6
            (ticket, again) = [side.send(number, size, now, end) for side in pair]
            assert ticket == again
            open_tickets.append(ticket)
        elif act == 4:
            for side in pair:
                side.expected.tick(now)
        elif act == 5:
            for side in pair:
                side.expected.close_next(now)
        elif act == 6:
            pace, learned = rng.uniform(0.1, 3.0), rng.choice([0.0, 5000.0])
            for side in pair:
                side.expected.pace = pace
                side.pool.pace.tokens_per_s[0] = learned
        elif open_tickets:  # somebody saw the end after all
            ticket = open_tickets.pop(rng.randrange(len(open_tickets)))
            for side in pair:
                side.router.close(ticket, OK, now)
        moment = now - rng.random() * 10
        until = [side.expected.opened_until(moment) for side in pair]
        assert until[0] == until[1]
        assert pair[0].state() == pair[1].state()
    for side in pair:
        side.expected.tick(1e12)
    assert pair[0].state() == pair[1].state()
    assert len(pair[0].expected) == 0


def test_a_long_queue_grows_around_its_end() -> None:
    """The ring is full with its first entry in the middle: order and numbers hold."""
    pair = sides()
    for number in range(40):
        for side in pair:
            side.send(number, 1, float(number), end=True)
    for _ in range(30):
        for side in pair:
            side.expected.close_next(50.0)
    for number in range(40, 1000):
        for side in pair:
            side.send(number, 1, float(number), end=True)
    for moment in (0.0, 35.0, 64.5, 999.0, 2000.0):
        until = [side.expected.opened_until(moment) for side in pair]
        assert until[0] == until[1]
    assert len(pair[0].expected) == 970
    for side in pair:
        side.expected.tick(1e12)
    assert pair[0].state() == pair[1].state()


def test_memory_follows_the_open_tickets() -> None:
    """Prefill is predicted hours away, and tickets end all the same: by the limit, or seen."""
    for end in (True, False):
        side = Side(core.Expected, most=50)
        side.pool.pace.tokens_per_s[0] = 1e-3
        side.expected.pace = 1e6
        held: list[int] = []
        for number in range(20_000):
            held.append(side.send(number % 50, 1, 0.001 * number, end=end))
            if not end and len(held) > 40:  # all but the oldest, which stays in front
                side.router.close(held.pop(1), OK, 0.001 * number)
        assert side.router.open_tickets <= 51
        assert side.expected.room <= 512
        side.expected.tick(1e15)
        for ticket in held:
            side.router.close(ticket, OK, 1e15)
        assert side.expected.idle and side.router.open_tickets == 0


def test_refused_memory_loses_no_ticket() -> None:
    side = Side(core.Expected)
    for after in range(3):
        core._fail_allocation_after(after)
        try:
            for number in range(200):
                now = float(number)
                try:
                    side.send(number, 1, now, end=True)
                except MemoryError:
                    side.router.close(side.router.decide(_request(), now, 1).ticket, OK, now)
        finally:
            core._fail_allocation_after(-1)
    side.expected.tick(1e12)
    # What could not be predicted is left to its owner: here one ticket for each refusal at most.
    assert len(side.expected) == 0 and side.router.open_tickets <= 3


def _request() -> Request:
    return Request(kind=Kind.COMPLETIONS, prompt=b"x")


def test_arguments_are_checked() -> None:
    side = Side(core.Expected)
    with pytest.raises(TypeError):
        core.Expected(side.lane, 0, array("f", [0.0]), side.router.metrics, OK, most=1, **RATES)


def test_what_is_left_is_freed() -> None:
    side = Side(core.Expected)
    for number in range(100):
        side.send(number, 1, 0.0, end=True)
    references = sys.getrefcount(side.lane)
    side.expected = None
    gc.collect()
    left = sys.getrefcount(side.lane)  # outside of the assertion, which holds one more
    assert left == references - 1
