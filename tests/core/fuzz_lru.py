"""Seeded, bounded random histories of `_core.lru` against its twin; made for a sanitizer build.

python -m tests.core.fuzz_lru --seconds 20 --seed 1
"""

from __future__ import annotations

import random
from array import array

from tests.core.fuzzing import fuzz
from tests.core.twin_lru import TwinLru
from warmlane._core import lru
from warmlane._core.lru import Lru


def step(rnd: random.Random, real: Lru, twin: TwinLru, universe: int) -> None:
    choice = rnd.random()
    start = rnd.randrange(universe)
    chain = [1 + start * 7919 % universe * 64 + at for at in range(rnd.randrange(120))]
    if rnd.random() < 0.05:
        chain += rnd.sample(chain, min(3, len(chain)))
    if choice < 0.8:
        if rnd.random() < 0.1:
            lru._fail_alloc_after(rnd.randrange(4))
        try:
            known = real.touch(array("Q", chain))
        except MemoryError:
            return
        finally:
            lru._fail_alloc_after(-1)
        assert known == twin.touch(chain)
        assert list(real.evicted()) == twin.gone
    elif choice < 0.9:
        assert real.discard(array("Q", chain)) == twin.discard(chain)
    elif choice < 0.998:
        real.set_capacity(capacity := rnd.randrange(1, 3000))
        twin.capacity = capacity
        assert real.trim(budget := rnd.randrange(2000)) == twin.trim(budget)
        assert list(real.evicted()) == twin.gone
    else:
        real.clear()
        twin.clear()


def life(rnd: random.Random) -> int:
    """300 steps on a list of its own."""
    real, twin = Lru(500), TwinLru(500)
    universe = rnd.choice([20, 200, 5000])
    for _ in range(300):
        step(rnd, real, twin, universe)
    real.check_invariants()
    assert list(real.dump()) == list(twin.keys)
    return 300


if __name__ == "__main__":
    fuzz(__file__, life)
