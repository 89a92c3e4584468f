"""Seeded, bounded random histories of `_core.ledger` against its twin; for a sanitizer build.

python -m tests.core.fuzz_ledger --seconds 20 --seed 1
"""

from __future__ import annotations

import random

from tests.core.fuzzing import fuzz
from tests.core.twin_ledger import TwinLedger
from warmlane._core import ledger
from warmlane._core.ledger import Ledger, LedgerFull

COLUMNS = ("requests", "prefill_tokens", "decode_tokens", "running")


def step(rnd: random.Random, real: Ledger, twin: TwinLedger, given: list[int], now: float) -> None:
    choice, slot = rnd.random(), rnd.randrange(real.slots)
    tokens = rnd.choice([-1.0, 0.0, 0.4, rnd.random() * 1e5, 2.0**36])
    ticket = rnd.choice(given) if given and rnd.random() < 0.97 else rnd.getrandbits(63)
    if choice < 0.35:
        try:
            ticket = real.open(slot, tokens, 10 * tokens, now)
        except LedgerFull:
            assert len(twin.open_tickets) == twin.max_tickets
            return
        twin.open(ticket, slot, tokens, 10 * tokens, now)
        given.append(ticket)
    elif choice < 0.45:
        assert real.moved(ticket, slot, tokens) == twin.moved(ticket, slot, tokens)
    elif choice < 0.6:
        assert real.first_token(ticket, now) == twin.first_token(ticket, now)
    elif choice < 0.7:
        assert real.progress(ticket, tokens) == twin.progress(ticket, tokens)
    elif choice < 0.99:
        assert real.close(ticket, now) == twin.close(ticket, now)
    else:
        age, limit = rnd.randrange(30), rnd.randrange(5)
        assert real.expire(now - age, limit) == twin.expire(now - age, limit)
    del given[:-300]


def life(rnd: random.Random) -> int:
    """400 steps on a ledger of its own."""
    size = rnd.choice([1, 4, 100])
    if rnd.random() < 0.1:
        ledger._fail_alloc_after(0)
        try:
            Ledger(3, size)
        except MemoryError:
            pass
        else:
            raise AssertionError("a refused allocation went unnoticed")
    real, twin = Ledger(7, size), TwinLedger(size)
    given: list[int] = []
    for at in range(400):
        step(rnd, real, twin, given, float(at))
    real.check_invariants()
    assert real.stale_events == twin.stale
    for name in COLUMNS:
        assert list(getattr(real, name)) == twin.column(name, 7), name
    return 400


if __name__ == "__main__":
    fuzz(__file__, life)
