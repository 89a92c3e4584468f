"""Fuzz the prefix tree: random calls with right and wrong parents, caps and failing allocations.

    python -m tests.core.fuzz_radix --seconds 20 --seed 1

Meant for the sanitized build (run_sanitized.sh). Prints the seed first; a fault is an
AssertionError of check_invariants or a report of the sanitizer. Keys come from a small pool, so
that chains collide, rings of parents form and nodes are reused at once.
"""

from __future__ import annotations

import random
from array import array

from tests.core.fuzzing import fuzz
from warmlane._core.radix import RadixTree, _fail_alloc_after

REPLICAS = 40


class Fuzz:
    """One random life of one tree."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.capped = source.random() < 0.3
        self.failing = source.random() < 0.3
        self.wild = source.random() < 0.5
        self.tree = RadixTree(4 << 20 if self.capped else 0, REPLICAS)
        count = source.choice([5, 60, 3_000] + [60_000] * self.capped)
        self.keys = array("Q", (source.getrandbits(64) | 1 for _ in range(count)))
        self.columns = [array("i", bytes(4 * REPLICAS)) for _ in range(3)]

    def chain(self) -> tuple[array[int], int]:
        """A run of keys and its parent: true ones follow the pool's order, wild ones nothing."""
        source, keys = self.source, self.keys
        length = source.choice([1, 1, 2, 9, 70, 400])
        if self.wild and source.random() < 0.3:
            chosen = array("Q", (source.choice(keys) for _ in range(length)))
            return chosen, source.choice([0, source.choice(keys)])
        start = source.randrange(len(keys))
        return keys[start : start + length], keys[start - 1] if start else 0

    def step(self) -> None:
        source, tree = self.source, self.tree
        replica, tier = source.randrange(REPLICAS), source.choice([0, 0, 0, 1, 2])
        chain, parent = self.chain()
        act = source.random()
        if act < 0.4:
            insert = source.choice([tree.insert, tree.insert_once])
            try:
                insert(replica, chain, parent=parent, tier=tier)
            except RuntimeError:
                assert not tree.is_free(replica)
        elif act < 0.65:
            if source.random() < 0.5:
                chain.reverse()
            tree.remove(replica, chain, tier=tier)
        elif act < 0.75:
            start = source.randrange(len(self.keys)) if self.wild else 0
            prompt = self.keys[start : start + source.choice([1, 8, 64, 65, 700])]
            best = tree.match(prompt, *self.columns)
            assert best == max(self.columns[2]) <= len(prompt)
            for gpu, cpu, any_tier in zip(*self.columns, strict=True):
                assert 0 <= gpu <= cpu <= any_tier
        elif act < 0.85:
            tree.maintain(source.choice([0, 1, 5, 100]))
        elif act < 0.88:
            tree.clear(replica, source.choice([-1, 0, 1, 2]))
        elif act < 0.9:
            tree.drop(replica)
        elif self.failing:
            _fail_alloc_after(source.randrange(6))

    def run(self, steps: int) -> None:
        for turn in range(steps):
            try:
                self.step()
            except MemoryError:
                assert self.failing
            if turn % 40 == 0:
                _fail_alloc_after(-1)
                self.tree.check_invariants()
        _fail_alloc_after(-1)
        for replica in range(REPLICAS):
            self.tree.drop(replica)
        while self.tree.maintain(1000):
            pass
        self.tree.check_invariants()
        assert self.tree.blocks == 0, self.tree.stats()


if __name__ == "__main__":
    fuzz(__file__, lambda rng: Fuzz(rng).run(1_500))
