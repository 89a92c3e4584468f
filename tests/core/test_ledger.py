"""`_core.ledger` against its twin; stale events; full table; shared columns; failed memory."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from tests.core import ledger_hammer
from tests.core.twin_ledger import TwinLedger
from warmlane._core import ledger
from warmlane._core.ledger import Ledger, LedgerFull

SLOTS, MAX_TICKETS = 5, 6
COLUMNS = ("requests", "prefill_tokens", "decode_tokens", "running")
TOKENS = st.floats(-5, 1e9, allow_nan=False)
SLOT = st.integers(0, SLOTS - 1)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of events, also for tickets that were closed long ago or never given out."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.real = Ledger(SLOTS, MAX_TICKETS)
        self.twin = TwinLedger(MAX_TICKETS)
        self.now = 100.0

    @rule(target=tickets, slot=SLOT, prefill=TOKENS, decode=TOKENS, expected=st.integers(0, 500))
    def open(self, slot: int, prefill: float, decode: float, expected: int) -> int:
        self.now += 1.0
        if len(self.twin.open_tickets) == MAX_TICKETS:
            with pytest.raises(LedgerFull):
                self.real.open(slot, prefill, decode, self.now, expected)
            self.twin.full += 1
            return -1
        ticket = self.real.open(slot, prefill, decode, self.now, expected)
        assert 0 < ticket < 1 << ledger.TICKET_BITS
        self.twin.open(ticket, slot, prefill, decode, self.now, expected)
        return ticket

    @rule(ticket=tickets | st.integers(-(2**63), 2**63 - 1), slot=SLOT, prefill=TOKENS)
    def moved(self, ticket: int, slot: int, prefill: float) -> None:
        assert self.real.moved(ticket, slot, prefill) == self.twin.moved(ticket, slot, prefill)

    @rule(ticket=tickets, back=st.floats(-10, 10))
    def first_token(self, ticket: int, back: float) -> None:
        now = self.now - back
        assert self.real.first_token(ticket, now) == self.twin.first_token(ticket, now)

    @rule(ticket=tickets, output=st.integers(0, 1000))
    def progress(self, ticket: int, output: int) -> None:
        assert self.real.progress(ticket, output) == self.twin.progress(ticket, output)

    @rule(ticket=tickets | st.integers(-(2**63), 2**63 - 1), back=st.floats(-10, 10))
    def decoded(self, ticket: int, back: float) -> None:
        now = self.now - back
        found, wanted = self.real.decoded(ticket, now), self.twin.decoded(ticket, now)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found == pytest.approx(wanted, rel=1e-12)

    @rule(ticket=tickets)
    def close(self, ticket: int) -> None:
        expected = self.twin.open_tickets.get(ticket, {"slot": -1})["slot"]
        assert self.real.slot_of(ticket) == expected
        assert self.real.close(ticket, self.now) == self.twin.close(ticket, self.now)

    @rule(age=st.integers(0, 8), limit=st.integers(0, 4))
    def expire(self, age: int, limit: int) -> None:
        closed = self.real.expire(self.now - age, limit)
        assert closed == self.twin.expire(self.now - age, limit)

    @invariant()
    def same(self) -> None:
        self.real.check_invariants()
        for name in COLUMNS:
            assert list(getattr(self.real, name)) == self.twin.column(name, SLOTS), name
        assert self.real.stale_events == self.twin.stale
        assert self.real.full_events == self.twin.full
        assert self.real.open_tickets == len(self.twin.open_tickets)


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


def test_columns_return_to_exactly_zero() -> None:
    book, rnd = Ledger(3), random.Random(3)
    tickets = [
        book.open(rnd.randrange(3), rnd.random() * 1e6, rnd.random(), 0.0) for _ in range(500)
    ]
    rnd.shuffle(tickets)
    for ticket in tickets:
        book.progress(ticket, rnd.random() * 100)
        book.first_token(ticket, 1.0)
        book.close(ticket, 2.0)
    for name in COLUMNS:
        assert list(getattr(book, name)) == [0, 0, 0], name


def test_a_generation_is_not_reused() -> None:
    book = Ledger(1, 1)
    seen = set()
    for _ in range(2000):
        ticket = book.open(0, 1, 1, 0.0)
        assert ticket not in seen
        seen.add(ticket)
        book.close(ticket, 0.0)
    assert all(book.slot_of(ticket) == -1 for ticket in seen)


def test_refusals_change_nothing() -> None:
    book = Ledger(2, 4)
    for slot in (-1, 2, 10**9):
        with pytest.raises(IndexError):
            book.open(slot, 1, 1, 0.0)
    ticket = book.open(1, 1, 1, 0.0)
    with pytest.raises(IndexError):
        book.moved(ticket, 2, 1)
    for wrong in (float("nan"), float("inf"), 1e300):
        with pytest.raises(ValueError, match="finite"):
            book.open(0, wrong, 1, 0.0)
        with pytest.raises(ValueError, match="finite"):
            book.moved(ticket, 0, wrong)
        with pytest.raises(ValueError, match="finite"):
            book.progress(ticket, wrong)
    book.check_invariants()
    assert book.open_tickets == 1
    for arguments in ((0, 1), (1, 0), (1, ledger.MAX_TICKETS + 1), (1 << 17, 1)):
        with pytest.raises(ValueError):
            Ledger(*arguments)
    for fail_at in range(2):
        ledger._fail_alloc_after(fail_at)
        with pytest.raises(MemoryError):
            Ledger()


def test_supplied_columns_are_used_in_place() -> None:
    block = bytearray(24 * 4)
    view = memoryview(block)
    columns = ledger_hammer.views_of(view, 4)
    book = Ledger(4, 8, columns)
    book.first_token(book.open(2, 30, 40, 0.0), 1.0)
    assert [column[2] for column in columns] == [1, 0.0, 40.0, 1]
    assert id(book.decode_tokens) == id(columns[2])
    own = array("d", [0.0] * 4)
    book = Ledger(4, 8, (array("i", [0] * 4), own, array("d", [0.0] * 4), array("i", [0] * 4)))
    with pytest.raises(BufferError):
        own.append(1.0)
    for wrong, error in (
        (columns[:3], ValueError),
        ((columns[1], *columns[1:]), TypeError),
        ((columns[0][:3], *columns[1:]), ValueError),
        ((memoryview(bytes(16)).cast("i"), *columns[1:]), BufferError),
    ):
        with pytest.raises(error):
            Ledger(4, 8, wrong)
    with pytest.raises(ValueError, match="shorter"):
        Ledger(5, 8, columns)


def test_adds_of_two_processes_do_not_get_lost(tmp_path: Path) -> None:
    shared = tmp_path / "columns"
    shared.write_bytes(bytes(48))
    command = [sys.executable, ledger_hammer.__file__, str(shared), "60000"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    children = [subprocess.Popen(command, env=env) for _ in range(2)]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    columns = ledger_hammer.views_of(memoryview(shared.read_bytes()), 2)
    assert [column.tolist() for column in columns] == [[0, 2], [0, 14], [0, 18], [0, 0]]


def test_what_a_ticket_waited_for_is_known_until_its_first_token() -> None:
    ledger = Ledger(slots=2, max_tickets=8)
    ledger.open(1, 500, 0, 1.0)
    ticket = ledger.open(1, 200, 0, 2.0)
    assert ledger.waited_for(ticket, 2.5) == (700.0, 0.5)
    stale = ledger.stale_events
    ledger.first_token(ticket, 3.0)
    assert ledger.waited_for(ticket, 3.0) == (-1.0, -1.0)
    moved = ledger.open(0, 100, 0, 4.0)
    assert ledger.moved(moved, 1, 100)
    assert ledger.waited_for(moved, 5.0) == (-1.0, -1.0)
    ledger.close(moved, 6.0)
    assert ledger.waited_for(moved, 6.0) == (-1.0, -1.0)
    assert ledger.waited_for(0, 6.0) == (-1.0, -1.0)
    assert ledger.stale_events == stale
