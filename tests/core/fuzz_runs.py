"""Fuzz the run tree: random histories against its twin, under caps, with failing allocations.

    python -m tests.core.fuzz_runs --seconds 20 --seed 1

Meant for the sanitized build (run_sanitized.sh). Wild chains (keys that follow nothing, repeated
keys) and capped trees have no twin: there the invariants alone are checked.
"""

from __future__ import annotations

import random
from array import array

from tests.core.fuzzing import fuzz
from tests.core.twin_runs import TwinRuns
from warmlane._core.runs import MIN_BYTES, RunTree, _fail_alloc_after

REPLICAS = 12


def path_key(key: int, turn: int) -> int:
    return (key * 0x9E3779B97F4A7C15 + turn + 1) & 0xFFFFFFFFFFFFFFFF


class Fuzz:
    """One random life of one tree."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.capped = source.random() < 0.3
        self.wild = source.random() < 0.3
        self.failing = source.random() < 0.4
        self.lengths = source.choice([[1, 2, 3], [5, 30], [1, 40, 400]])
        if self.capped:
            self.lengths = [3_000, 30_000]
        self.branches = source.choice([1, 2, 5])
        self.most = source.choice([6, 300, 20_000]) * (100 if self.capped else 1)
        self.tree = RunTree(REPLICAS, MIN_BYTES if self.capped else 0)
        self.twin = None if self.capped or self.wild else TwinRuns()
        self.live: set[int] = set()
        self.out = array("i", bytes(4 * REPLICAS))

    def chain(self) -> array[int]:
        """Keys that name their whole path: chains fork now and then, mostly early."""
        source, key = self.source, 1
        length, keys = source.randrange(1, source.choice(self.lengths) + 1), array("Q")
        forks = {source.randrange(length) for _ in range(2)}
        for at in range(length):
            key = path_key(key, source.randrange(self.branches) if at in forks else 0)
            keys.append(key)
        if self.wild and source.random() < 0.5:
            source.shuffle(keys)
        return keys

    def touch(self, replica: int) -> None:
        chain, limit = self.chain(), self.tree.capacity(replica)
        if self.failing and self.source.random() < 0.3:
            _fail_alloc_after(self.source.randrange(6))
        try:
            known = self.tree.touch(replica, chain)
        except MemoryError:
            return
        finally:
            _fail_alloc_after(-1)
        assert self.tree.match(chain, self.out) <= len(chain)
        if self.twin is not None:
            assert known == self.twin.touch(replica, chain)
            assert list(self.out) == self.twin.match(chain, REPLICAS)
        elif not self.capped:
            assert self.out[replica] >= min(limit, len(chain))

    def step(self) -> None:
        source, tree = self.source, self.tree
        replica, act = source.randrange(REPLICAS), source.random()
        if replica not in self.live:
            if tree.is_free(replica):
                capacity = source.randrange(1, self.most)
                tree.set_capacity(replica, capacity)
                self.live.add(replica)
                if self.twin is not None:
                    self.twin.set_capacity(replica, capacity)
            else:
                self.settle()
        elif act < 0.9:
            self.touch(replica)
        elif act < 0.94:
            capacity = source.randrange(1, self.most)
            tree.set_capacity(replica, capacity)
            if self.twin is not None:
                self.twin.set_capacity(replica, capacity)
        elif act < 0.96:
            tree.clear(replica)
            if self.twin is not None:
                self.twin.clear(replica)
        elif act < 0.98:
            tree.drop(replica)
            self.live.discard(replica)
            if self.twin is not None:
                self.twin.drop(replica)
        else:
            self.settle()

    def settle(self) -> None:
        while self.tree.maintain(self.source.randrange(20)):
            pass
        if self.twin is not None:
            self.twin.settle()

    def life(self) -> int:
        steps = 60 if self.capped else 300
        for step in range(steps):
            self.step()
            if step % 5 == 0:
                self.tree.check_invariants()
        for replica in self.live if self.twin is not None else ():
            assert self.twin is not None
            assert list(self.tree.dump(replica)) == list(self.twin.sets[replica].keys)
        for replica in range(REPLICAS):
            self.tree.drop(replica)
        while self.tree.maintain(1000):
            pass
        self.tree.check_invariants()
        assert self.tree.blocks == self.tree.runs == 0
        return steps


if __name__ == "__main__":
    fuzz(__file__, lambda rng: Fuzz(rng).life())
