"""The approximate view against a dict of recency sets; shrinks, joins and leaves; the cap."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core.twin_lru import TwinLru
from warmlane._core import runs
from warmlane.router.index import BLOCK_BYTES, MIN_BYTES, ApproximateIndex

SLOTS = 4


def chain_of(family: int, length: int, fork: int = 0) -> list[int]:
    """Chains of one family share their first 5 blocks, whatever their fork."""
    forked = [((family * 10 + fork) << 32) + at for at in range(5, length)]
    return ([(family << 16) + at + 1 for at in range(length)])[:5] + forked


CHAINS = st.builds(chain_of, st.integers(1, 6), st.integers(0, 14), st.integers(0, 2))


class IndexMachine(RuleBasedStateMachine):
    """Sends, repeats, joins, leaves, restarts and resizes in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.real = ApproximateIndex(max_replicas=SLOTS, default_blocks=9)
        self.twin: dict[int, TwinLru] = {}

    @rule(slot=st.integers(0, SLOTS - 1), blocks=st.none() | st.integers(1, 40))
    def add(self, slot: int, blocks: int | None) -> None:
        if not self.real.free(slot):
            with pytest.raises(ValueError, match="not free"):
                self.real.add(slot, blocks)
            return
        self.real.add(slot, blocks)
        self.twin[slot] = TwinLru(9 if blocks is None else blocks)

    @rule(slot=st.integers(0, SLOTS - 1))
    def drop(self, slot: int) -> None:
        self.real.drop(slot)
        self.twin.pop(slot, None)

    @rule(slot=st.integers(0, SLOTS - 1), chain=CHAINS)
    def record(self, slot: int, chain: list[int]) -> None:
        new = self.real.record(slot, array("Q", chain))
        if slot in self.twin:
            known = self.twin[slot].touch(chain)
            assert new == min(len(chain), self.twin[slot].capacity) - known
        else:
            assert new == 0

    @rule(slot=st.integers(0, SLOTS - 1), blocks=st.none() | st.integers(1, 40))
    def resize(self, slot: int, blocks: int | None) -> None:
        self.real.set_capacity(slot, blocks)
        if slot in self.twin:
            self.twin[slot].capacity = 9 if blocks is None else blocks

    @rule(slot=st.integers(0, SLOTS - 1))
    def clear(self, slot: int) -> None:
        self.real.clear(slot)
        if slot in self.twin:
            self.twin[slot].clear()

    @rule()
    def maintain(self) -> None:
        while self.real.maintain(1000):
            pass
        for twin in self.twin.values():
            while twin.trim():
                pass

    @rule(chain=CHAINS)
    def match(self, chain: list[int]) -> None:
        out = array("i", [7] * SLOTS)
        best = self.real.match(array("Q", chain), out)
        expected = []
        for slot in range(SLOTS):
            held = self.twin[slot].keys if slot in self.twin else {}
            count = next((at for at, key in enumerate(chain) if key not in held), len(chain))
            expected.append(count)
        assert list(out) == expected
        assert best == max(expected)

    @invariant()
    def counts(self) -> None:
        stats = self.real.stats()
        assert stats["replicas"] == len(self.twin)
        assert stats["held"] == sum(len(twin.keys) for twin in self.twin.values())
        distinct = {key for twin in self.twin.values() for key in twin.keys}
        assert stats["blocks"] >= len(distinct)  # a dropped replica's blocks leave in slices


IndexMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
TestIndexMachine = IndexMachine.TestCase


def hits(index: ApproximateIndex, keys: array[int], slots: int) -> list[int]:
    out = array("i", bytes(4 * slots))
    index.match(keys, out)
    return list(out)


def test_next_turn_extends_what_is_there() -> None:
    index = ApproximateIndex(max_replicas=4)
    index.add(1, 100)
    turn = array("Q", chain_of(1, 10))
    longer = array("Q", chain_of(1, 14))
    assert index.record(1, turn) == 10
    assert index.record(1, turn) == 0
    assert hits(index, longer, 4) == [0, 10, 0, 0]
    assert index.record(1, longer) == 4
    assert hits(index, longer, 4) == [0, 14, 0, 0]


def test_an_unknown_capacity_is_a_guess_until_told() -> None:
    index = ApproximateIndex(max_replicas=4, default_blocks=50)
    index.add(0)
    assert index.guessed == {0}
    assert index.capacity(0) == 50
    index.set_capacity(0, 7)
    assert index.guessed == set()
    assert index.capacity(0) == 7
    index.set_capacity(3, 7)  # not a replica (any more): legal
    assert index.capacity(3) == 0


def test_a_slot_is_free_only_after_the_sweep() -> None:
    index = ApproximateIndex(max_replicas=2)
    with pytest.raises(IndexError):
        index.add(2, 10)
    index.add(0, 10_000)
    with pytest.raises(ValueError, match="not free"):
        index.add(0, 10)
    keys = array("Q", range(1, 5001))
    index.record(0, keys)
    index.drop(0)
    assert hits(index, keys, 2) == [0, 0]
    assert not index.free(0)
    for _ in range(10_000):
        if not index.maintain(100):
            break
    assert index.free(0)
    index.add(0, 10)
    assert hits(index, keys, 2) == [0, 0]
    assert index.record(0, keys) == 10


def test_a_restarted_replica_is_forgotten() -> None:
    index = ApproximateIndex(max_replicas=2)
    index.add(0, 100)
    index.add(1, 100)
    keys = array("Q", range(1, 51))
    index.record(0, keys)
    index.record(1, keys)
    index.clear(0)
    while index.maintain(1000):
        pass
    assert hits(index, keys, 2) == [0, 50]
    assert index.record(0, keys) == 50


def test_memory_stays_under_the_cap_and_nothing_is_over_counted() -> None:
    cap = 10_000_000
    index, rnd = ApproximateIndex(cap, max_replicas=8), random.Random(9)
    sent: list[set[int]] = [set() for _ in range(8)]
    for slot in range(8):
        index.add(slot, 1_000_000)
    assert len(index.capped) == 8
    share = cap // BLOCK_BYTES
    assert index.capacity(0) == share // 8
    for _ in range(2500):
        slot = rnd.randrange(8)
        chain = array("Q", [rnd.getrandbits(64) | 1 for _ in range(rnd.randrange(1, 120))])
        index.record(slot, chain)
        sent[slot].update(chain)
        assert index.bytes_used <= cap
        counts = hits(index, chain, 8)
        assert counts[slot] <= len(chain)
        assert all(count == 0 for other, count in enumerate(counts) if other != slot)
    for slot in range(1, 8):
        index.drop(slot)
    assert index.capped == {0}
    assert index.capacity(0) == share


def test_a_tiny_cap_is_raised_to_the_least_one() -> None:
    index = ApproximateIndex(1, max_replicas=2)
    index.add(0, 10**6)
    assert index.capacity(0) == MIN_BYTES // BLOCK_BYTES


def test_a_failed_allocation_is_made_good_by_the_next_record() -> None:
    index = ApproximateIndex(max_replicas=2)
    index.add(0, 100_000)
    index.record(0, array("Q", range(1, 11)))
    keys = array("Q", range(1, 40_001))
    runs._fail_alloc_after(0)
    try:
        with pytest.raises(MemoryError):
            index.record(0, keys)
    finally:
        runs._fail_alloc_after(-1)
    assert hits(index, keys, 2)[0] == index.stats()["held"] == 10
    assert index.record(0, keys) == 39_990
    assert hits(index, keys, 2)[0] == 40_000


def test_single_blocks_meet_the_hard_cap_and_the_oldest_go() -> None:
    index, rnd = ApproximateIndex(MIN_BYTES, max_replicas=3), random.Random(4)
    for slot in range(3):
        index.add(slot, 10**6)
    # Three times what fits, in runs of one block: each takes more than its share assumes.
    prompts = [array("Q", [rnd.getrandbits(64) | 1]) for _ in range(300_000)]
    for at, prompt in enumerate(prompts):
        index.record(at % 3, prompt)
        if at % 1000 == 0:
            assert index.bytes_used <= MIN_BYTES
    assert index.bytes_used <= MIN_BYTES
    stats = index.stats()
    assert stats["under_counting"]
    assert stats["held"] == stats["blocks"] > 80_000
    for at, prompt in list(enumerate(prompts))[-20_000:]:
        assert hits(index, prompt, 3) == [int(slot == at % 3) for slot in range(3)]
    assert hits(index, prompts[0], 3) == [0, 0, 0]
    assert index.record(0, prompts[0]) == 1
    assert hits(index, prompts[0], 3) == [1, 0, 0]


def test_a_capacity_beyond_any_memory_is_taken_as_the_greatest() -> None:
    index = ApproximateIndex(max_replicas=2)
    index.add(0, 10**12)
    assert index.capacity(0) == runs.MAX_CAPACITY
    assert index.record(0, array("Q", [1, 2])) == 2
