"""Fuzz the event intake: true streams, damaged frames, noise, caps and failing allocations.

    python -m tests.core.fuzz_kv_events --seconds 20 --seed 1

Meant for the sanitized build (run_sanitized.sh). Prints the seed first; a fault is an
AssertionError of check_invariants or a report of the sanitizer.
"""

from __future__ import annotations

import random

from tests.core.event_streams import FORMS, HASHES, Engine
from tests.core.fuzzing import fuzz
from warmlane._core.kv_events import BROKEN, MORE, Intake, _fail_alloc_after
from warmlane._core.radix import RadixTree

REPLICAS = 6


class Fuzz:
    """One random life of one intake."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.failing = source.random() < 0.3
        self.tree = RadixTree(4 << 20 if source.random() < 0.3 else 0, REPLICAS)
        self.intake = Intake(self.tree, source.choice([0, 20_000, 200_000]))
        self.engines = [
            Engine(source, source.choice("ab"), source.choice(FORMS), source.choice(HASHES))
            for _ in range(REPLICAS)
        ]
        for replica in range(REPLICAS):
            self.intake.open(replica, source.choice(["", "model"]))

    def damaged(self, frame: bytes) -> bytes:
        source, made = self.source, bytearray(frame)
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(len(made) + 1)
            act = source.random()
            if act < 0.4 and at < len(made):
                made[at] = source.choice([0xC0, 0xDC, 0xDD, 0xDF, 0xFF, source.randrange(256)])
            elif act < 0.6:
                del made[at:]
            elif act < 0.8:
                del made[at : at + source.randrange(9)]
            else:
                made[at:at] = source.randbytes(source.randrange(9))
        return bytes(made)

    def step(self) -> None:
        source = self.source
        replica = source.randrange(REPLICAS)
        act = source.random()
        if act < 0.9:
            frame = self.engines[replica].batch()
            if source.random() < 0.3:
                frame = self.damaged(frame)
            # A buffer of its own: a read beyond its end is then beyond a heap block's.
            frame = bytes(bytearray(frame))
            budget = source.choice([0, 0, 1, 5])
            for _ in range(10_000):
                if not self.intake.apply(replica, frame, budget) & MORE:
                    break
            else:
                raise AssertionError("a frame without end")
        elif act < 0.92:
            assert self.intake.apply(replica, source.randbytes(source.randrange(40))) >= BROKEN
        elif act < 0.94:
            self.intake.clear(replica)
        elif act < 0.96:
            self.intake.reset(replica)
        elif act < 0.97:
            self.intake.close(replica)
            while not self.tree.is_free(replica):
                self.tree.maintain(1000)
            self.intake.open(replica)
        elif self.failing:
            _fail_alloc_after(source.randrange(6))
        self.tree.maintain(source.choice([0, 5, 100]))

    def run(self, steps: int) -> None:
        for turn in range(steps):
            try:
                self.step()
            except MemoryError:
                assert self.failing
                _fail_alloc_after(-1)
                for replica in range(REPLICAS):
                    if not self.intake.is_open(replica):
                        self.intake.open(replica)
            if turn % 40 == 0:
                self.tree.check_invariants()
        _fail_alloc_after(-1)
        for replica in range(REPLICAS):
            self.intake.close(replica)
        while self.tree.maintain(1000):
            pass
        self.tree.check_invariants()
        assert self.tree.blocks == 0, self.tree.stats()
        assert self.intake.map_bytes == 0, self.intake.map_bytes


if __name__ == "__main__":
    fuzz(__file__, lambda rng: Fuzz(rng).run(500))
