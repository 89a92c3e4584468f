"""Seeded, bounded random histories of `_core.ledger` against its twin; for a sanitizer build.

python -m tests.core.fuzz_ledger --seed 1 --seconds 20
"""

from __future__ import annotations

import argparse
import random
import time

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    end, seed, steps = time.monotonic() + args.seconds, args.seed, 0
    while time.monotonic() < end:
        rnd = random.Random(seed)
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
        try:
            for at in range(400):
                step(rnd, real, twin, given, float(at))
                steps += 1
            real.check_invariants()
            assert real.stale_events == twin.stale
            for name in COLUMNS:
                assert list(getattr(real, name)) == twin.column(name, 7), name
        except BaseException:
            print(f"fuzz_ledger: failed with --seed {seed}")
            raise
        seed += 1
    print(f"fuzz_ledger: {steps} steps, seeds {args.seed}..{seed - 1}, no difference")


if __name__ == "__main__":
    main()
