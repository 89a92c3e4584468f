"""`_core.lru` against its twin, its order against vLLM's rule, its bounds and its failures."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core.twin_lru import TwinLru
from warmlane._core import lru
from warmlane._core.lru import Lru

KEYS = st.integers(1, 120)
CHAINS = st.lists(KEYS, max_size=30)


def keys_of(values: list[int]) -> array[int]:
    return array("Q", values)


class LruMachine(RuleBasedStateMachine):
    """Any history: chains with repeated keys, capacity up and down, discards, failed memory."""

    def __init__(self) -> None:
        super().__init__()
        self.real = Lru(10)
        self.twin = TwinLru(10)

    @rule(chain=CHAINS)
    def touch(self, chain: list[int]) -> None:
        assert self.real.touch(keys_of(chain)) == self.twin.touch(chain)
        assert list(self.real.evicted()) == self.twin.gone

    @rule(chain=CHAINS, refused=st.integers(0, 3))
    def touch_without_memory(self, chain: list[int], refused: int) -> None:
        before = list(self.real.dump())
        lru._fail_alloc_after(refused)
        try:
            known = self.real.touch(keys_of(chain))
        except MemoryError:
            assert list(self.real.dump()) == before
        else:
            assert known == self.twin.touch(chain)
        finally:
            lru._fail_alloc_after(-1)

    @rule(chain=CHAINS)
    def discard(self, chain: list[int]) -> None:
        assert self.real.discard(keys_of(chain)) == self.twin.discard(chain)

    @rule(capacity=st.integers(1, 150), slice_=st.integers(0, 40))
    def resize(self, capacity: int, slice_: int) -> None:
        self.real.set_capacity(capacity)
        self.twin.capacity = capacity
        assert self.real.trim(slice_) == self.twin.trim(slice_)
        assert list(self.real.evicted()) == self.twin.gone

    @rule()
    def clear(self) -> None:
        self.real.clear()
        self.twin.clear()

    @rule(key=KEYS)
    def contains(self, key: int) -> None:
        assert (key in self.real) == (key in self.twin.keys)

    @invariant()
    def same(self) -> None:
        self.real.check_invariants()
        assert list(self.real.dump()) == list(self.twin.keys)
        assert len(self.real) == len(self.twin.keys)


LruMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLruMachine = LruMachine.TestCase


def test_tail_goes_first_and_a_shared_root_stays() -> None:
    shadow = Lru(6)
    shadow.touch(keys_of([1, 2, 3, 4]))
    shadow.touch(keys_of([1, 2, 30, 40]))
    assert list(shadow.evicted()) == []
    shadow.touch(keys_of([7, 8]))
    assert list(shadow.evicted()) == [4, 3]
    assert list(shadow.dump()) == [40, 30, 2, 1, 8, 7]


def test_old_root_of_the_chain_in_hand_is_not_evicted() -> None:
    shadow = Lru(4)
    shadow.touch(keys_of([1, 2]))
    shadow.touch(keys_of([10, 11]))
    assert shadow.touch(keys_of([1, 2, 3])) == 2
    assert list(shadow.evicted()) == [11]
    assert all(key in shadow for key in (1, 2, 3, 10))


def test_a_chain_longer_than_the_capacity_keeps_its_root() -> None:
    shadow = Lru(3)
    assert shadow.touch(keys_of([1, 2, 3, 4, 5])) == 0
    assert sorted(shadow.dump()) == [1, 2, 3]
    assert shadow.touch(keys_of([1, 2, 3, 4, 5])) == 3


def test_growth_by_slices_loses_nothing() -> None:
    rnd = random.Random(5)
    shadow, twin = Lru(60_000), TwinLru(60_000)
    chains = [[rnd.getrandbits(64) for _ in range(rnd.randrange(1, 90))] for _ in range(1500)]
    for step in range(2500):
        chain = rnd.choice(chains)
        assert shadow.touch(keys_of(chain)) == twin.touch(chain)
        if step % 100 == 0:
            shadow.check_invariants()
    assert list(shadow.dump()) == list(twin.keys)
    shadow.check_invariants()


def test_shrink_works_in_slices() -> None:
    shadow = Lru(10_000)
    shadow.touch(keys_of(list(range(1, 10_001))))
    shadow.set_capacity(10)
    assert shadow.trim(10**9) == 10_000 - 1024 - 10
    assert len(shadow.evicted()) == 1024
    assert shadow.touch(keys_of([1, 2])) == 2
    assert len(shadow) == 10_000 - 1024
    shadow.touch(keys_of([10_001]))
    assert len(shadow) == 10_000 - 1024 - 1
    while shadow.trim():
        pass
    assert len(shadow) == 10
    shadow.check_invariants()


@pytest.mark.parametrize("capacity", [1000, 100_000])
def test_memory_is_bounded_by_the_capacity(capacity: int) -> None:
    shadow = Lru(capacity)
    assert shadow.bytes_used < 2_000
    for start in range(1, 4 * capacity, 500):
        shadow.touch(keys_of(list(range(start, start + 500))))
    assert len(shadow) == capacity
    assert shadow.bytes_used <= 48 * capacity + 12_000


def test_refusals() -> None:
    for capacity in (0, -1, lru.MAX_CAPACITY + 1):
        with pytest.raises(ValueError, match="capacity"):
            Lru(capacity)
    shadow = Lru(5)
    with pytest.raises(ValueError, match="capacity"):
        shadow.set_capacity(0)
    for wrong in (array("I", [1]), array("d", [1.0]), b"12345678"):
        with pytest.raises(TypeError, match="uint64"):
            shadow.touch(wrong)
    with pytest.raises(TypeError):
        shadow.touch([1, 2])  # type: ignore[arg-type]
    assert shadow.touch(array("Q")) == 0
    assert len(shadow) == 0


def test_a_failed_first_allocation_raises() -> None:
    for refused in range(2):
        lru._fail_alloc_after(refused)
        with pytest.raises(MemoryError):
            Lru(10)
    lru._fail_alloc_after(-1)


class EngineBlocks:
    """vLLM's block pool for one request after the other: free queue, hits leave it, freed in
    reverse order at its end, new blocks from its head (BlockPool and free_blocks of v1)."""

    def __init__(self, count: int) -> None:
        self.free: list[int | None] = [None] * count  # cached key of each free block, head first

    def serve(self, chain: list[int]) -> tuple[int, list[int]]:
        hit = 0
        while hit < len(chain) and chain[hit] in self.free:
            hit += 1
        for key in chain[:hit]:
            self.free.remove(key)
        new = len(chain) - hit
        evicted = [key for key in self.free[:new] if key is not None]
        del self.free[:new]
        self.free += reversed(chain)
        return hit, evicted


@pytest.mark.parametrize("seed", range(5))
def test_it_holds_and_evicts_what_the_engine_does(seed: int) -> None:
    rnd, size = random.Random(seed), 200
    engine, shadow = EngineBlocks(size), Lru(size)
    chats: list[list[int]] = [[1, 2, 3, 4, 5, 6] for _ in range(30)]  # one system prompt
    for turn in range(1500):
        chat = rnd.choice(chats)
        if len(chat) > 100:
            del chat[6:]
        chat += [rnd.getrandbits(64) for _ in range(rnd.randrange(8))]
        hit, evicted = engine.serve(chat)
        assert shadow.touch(keys_of(chat)) == hit, turn
        assert list(shadow.evicted()) == evicted, turn
    assert list(shadow.dump()) == [key for key in engine.free if key is not None]
