"""`_core.runs` against its twin, against the old pair Lru + RadixTree, its bounds, its failures."""

from __future__ import annotations

import random
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.core.twin_runs import TwinRuns
from warmlane._core import runs
from warmlane._core.lru import Lru
from warmlane._core.radix import RadixTree
from warmlane._core.runs import MIN_BYTES, RunTree

REPLICAS = 4
# A chain is a path of turns, 0 to 2 at each block: short ones share much and fork everywhere.
TURNS = st.lists(st.integers(0, 2), max_size=7)
CAPACITIES = st.integers(1, 40)


def keys_of(turns: list[int], stretch: int = 3) -> array[int]:
    """Each turn becomes `stretch` blocks; a key names its whole path."""
    keys, key = array("Q"), 1
    for turn in turns:
        key = key * 4 + turn + 1
        keys.extend(key * 16 + at for at in range(stretch))
    return keys


class RunsMachine(RuleBasedStateMachine):
    """Any history of touches, shrinks, clears, drops and failed memory; recounted every step."""

    def __init__(self) -> None:
        super().__init__()
        self.real = RunTree(REPLICAS)
        self.twin = TwinRuns()

    @rule(replica=st.integers(0, REPLICAS - 1), capacity=CAPACITIES)
    def resize(self, replica: int, capacity: int) -> None:
        if replica not in self.twin.sets and not self.real.is_free(replica):
            with pytest.raises(RuntimeError, match="not swept"):
                self.real.set_capacity(replica, capacity)
            return
        self.real.set_capacity(replica, capacity)
        self.twin.set_capacity(replica, capacity)

    @rule(
        replica=st.integers(0, REPLICAS - 1),
        turns=TURNS,
        cut=st.integers(0, 2),
        refused=st.none() | st.integers(0, 4),
    )
    def touch(self, replica: int, turns: list[int], cut: int, refused: int | None) -> None:
        keys = keys_of(turns)
        keys = keys[: max(0, len(keys) - cut)]
        if replica not in self.twin.sets:
            with pytest.raises(RuntimeError, match="no capacity"):
                self.real.touch(replica, keys)
            return
        if refused is not None:
            runs._fail_alloc_after(refused)
        try:
            known = self.real.touch(replica, keys)
        except MemoryError:
            assert refused is not None
        else:
            assert known == self.twin.touch(replica, keys)
        finally:
            runs._fail_alloc_after(-1)

    @rule(turns=TURNS, room=st.integers(0, REPLICAS + 2))
    def match(self, turns: list[int], room: int) -> None:
        out, keys = array("i", [9] * room), keys_of(turns)
        best = self.real.match(keys, out)
        expected = self.twin.match(keys, REPLICAS + 2)[:room]
        assert list(out) == expected
        assert best == max(expected, default=0)

    @rule(replica=st.integers(0, REPLICAS - 1))
    def clear(self, replica: int) -> None:
        self.real.clear(replica)
        self.twin.clear(replica)

    @rule(replica=st.integers(0, REPLICAS - 1))
    def drop(self, replica: int) -> None:
        self.real.drop(replica)
        self.twin.drop(replica)

    @rule(slice_us=st.integers(0, 3))
    def settle(self, slice_us: int) -> None:
        while self.real.maintain(slice_us):
            self.real.check_invariants()
        self.twin.settle()
        assert self.real.blocks == len(self.twin.blocks())
        assert all(self.real.is_free(r) for r in range(REPLICAS) if r not in self.twin.sets)

    @invariant()
    def same(self) -> None:
        self.real.check_invariants()
        for replica, held in self.twin.sets.items():
            assert list(self.real.dump(replica)) == list(held.keys)
            assert self.real.held(replica) == len(held.keys)
            assert self.real.capacity(replica) == held.capacity
        assert self.real.runs <= self.real.blocks
        assert self.real.blocks >= len(self.twin.blocks())


RunsMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestRunsMachine = RunsMachine.TestCase


def tree_of(*capacities: int) -> RunTree:
    tree = RunTree(max(2, len(capacities)))
    for replica, capacity in enumerate(capacities):
        tree.set_capacity(replica, capacity)
    return tree


def hits(tree: RunTree, keys: array[int], room: int = 2) -> list[int]:
    out = array("i", bytes(4 * room))
    tree.match(keys, out)
    return list(out)


def random_chain(rnd: random.Random, length: int) -> array[int]:
    return array("Q", rnd.randbytes(8 * length))


def conversations(rnd: random.Random, count: int) -> list[array[int]]:
    """Turns of 40 talks below 6 system prompts, as a router sees them: grown, repeated, cut."""
    systems = [random_chain(rnd, rnd.randrange(1, 60)) for _ in range(6)]
    talks = [rnd.choice(systems)[:] for _ in range(40)]
    sent = []
    for _ in range(count):
        at = rnd.randrange(len(talks))
        if rnd.random() < 0.1 or len(talks[at]) > 400:
            talks[at] = rnd.choice(systems)[: rnd.randrange(1, 61)]
        if rnd.random() < 0.6:
            talks[at] = talks[at] + random_chain(rnd, rnd.randrange(1, 30))
        shown = talks[at]
        sent.append(shown if rnd.random() < 0.8 else shown[: rnd.randrange(1, len(shown) + 1)])
    return sent


@pytest.mark.parametrize("capacity", [50, 700, 5_000])
def test_same_hits_and_evictions_as_recency_sets_over_a_block_tree(capacity: int) -> None:
    rnd = random.Random(capacity)
    tree, blocks = tree_of(capacity, capacity, capacity), RadixTree(0, 3)
    sets = [Lru(capacity) for _ in range(3)]
    first, second = array("i", bytes(12)), array("i", bytes(12))
    for step, chain in enumerate(conversations(rnd, 2_500)):
        replica = rnd.randrange(3)
        assert tree.match(chain, first) == blocks.match_one_tier(chain, second)
        assert first == second
        known = tree.touch(replica, chain)
        assert known == sets[replica].touch(chain)
        if evicted := sets[replica].evicted():
            blocks.remove(replica, evicted)
        new = chain[known:capacity]
        if new:
            blocks.insert_once(replica, new, parent=chain[known - 1] if known else 0)
        if step % 25 == 0:  # equal orders at all times: equal evictions in order
            assert tree.dump(replica) == sets[replica].dump()
            assert tree.blocks == blocks.blocks
    tree.check_invariants()
    assert all(tree.dump(replica) == sets[replica].dump() for replica in range(3))


def test_tail_goes_first_and_a_shared_root_stays() -> None:
    tree = tree_of(6)
    tree.touch(0, array("Q", [1, 2, 3, 4]))
    tree.touch(0, array("Q", [1, 2, 30, 40]))
    tree.touch(0, array("Q", [7, 8]))
    assert list(tree.dump(0)) == [40, 30, 2, 1, 8, 7]


def test_a_chain_longer_than_the_capacity_keeps_its_root() -> None:
    tree = tree_of(3)
    keys = array("Q", [1, 2, 3, 4, 5])
    assert tree.touch(0, keys) == 0
    assert hits(tree, keys) == [3, 0]
    assert tree.touch(0, keys) == 3


def test_a_grown_chain_stays_one_run() -> None:
    tree, chain = tree_of(10_000), random_chain(random.Random(1), 2_000)
    for length in range(7, 2_001, 7):
        assert tree.touch(0, chain[:length]) == length - 7
    assert tree.runs == 1
    assert tree.bytes_used - tree_of(1).bytes_used <= 2_000 * 8 * 9 / 8 + 200


def test_runs_are_joined_again() -> None:
    tree, chain = tree_of(1_000, 1_000), random_chain(random.Random(2), 64)
    tree.touch(0, chain)
    tree.touch(1, chain)
    for length in range(63, 0, -1):  # the worst: each touch ends inside the run
        tree.touch(0, chain[:length])
    assert tree.runs == 64
    assert list(tree.dump(0)) == list(reversed(chain))
    for _ in range(64 // 8):  # eight joins a touch
        tree.touch(0, chain)
        tree.touch(1, chain)
    assert tree.runs == 1
    tree.check_invariants()


def test_at_most_two_more_runs_a_touch() -> None:
    rnd = random.Random(3)
    tree, before = tree_of(2_000, 2_000), 0
    for chain in conversations(rnd, 3_000):
        tree.touch(rnd.randrange(2), chain)
        assert tree.runs <= before + 2
        assert tree.runs <= tree.blocks
        before = tree.runs


def test_wild_keys_only_make_paths() -> None:
    """Keys that a client has made collide, and repeat, change nothing for other chains."""
    tree, rnd = tree_of(100, 100), random.Random(4)
    for _ in range(2_000):
        chain = array("Q", (rnd.randrange(5) for _ in range(rnd.randrange(12))))
        tree.touch(rnd.randrange(2), chain)
        assert max(hits(tree, chain)) == len(chain)
        tree.check_invariants()


def test_a_cleared_replica_is_forgotten_at_once_and_may_hold_again() -> None:
    tree, keys = tree_of(100, 100), random_chain(random.Random(5), 50)
    for _ in range(20):  # more lives than there are lanes
        tree.touch(0, keys)
        tree.clear(0)
        assert hits(tree, keys) == [0, 0]
        assert tree.held(0) == 0
        tree.check_invariants()
    tree.touch(1, keys)
    assert tree.touch(0, keys[:7]) == 0
    assert hits(tree, keys) == [7, 50]
    while tree.maintain(1):
        tree.check_invariants()
    assert hits(tree, keys) == [7, 50]


def test_a_drop_is_swept_in_slices() -> None:
    tree, rnd = tree_of(100_000, 100_000), random.Random(6)
    for _ in range(1_000):
        tree.touch(0, random_chain(rnd, 20))
    kept = random_chain(rnd, 20)
    tree.touch(1, kept)
    tree.drop(0)
    tree.drop(0)
    slices = 1
    while tree.maintain(100):
        assert tree.blocks == 20_020 - slices * 100 * 20
        assert not tree.is_free(0)
        slices += 1
    assert tree.is_free(0) and not tree.is_free(1)
    assert slices in (10, 11)
    assert tree.blocks == 20
    assert hits(tree, kept) == [0, 20]


def test_a_shrink_takes_two_blocks_for_one_until_it_is_reached() -> None:
    tree, rnd = tree_of(1_000), random.Random(7)
    tree.touch(0, random_chain(rnd, 1_000))
    tree.set_capacity(0, 900)
    tree.touch(0, random_chain(rnd, 40))
    assert tree.held(0) == 960
    tree.touch(0, random_chain(rnd, 70))
    assert tree.held(0) == 900
    assert not tree.maintain(10)


def test_memory_returns_with_the_blocks() -> None:
    tree, rnd = tree_of(50_000), random.Random(8)
    empty = tree.bytes_used
    for _ in range(500):
        tree.touch(0, random_chain(rnd, 100))
    full = tree.bytes_used - empty
    assert full <= 24 * 50_000
    tree.clear(0)
    while tree.maintain(1000):
        pass
    assert tree.blocks == 0
    # Node segments stay: 56 bytes a run, used again.
    assert tree.bytes_used - empty <= 500 * 56 + 16_384
    for _ in range(500):
        tree.touch(0, random_chain(rnd, 100))
    assert tree.bytes_used - empty <= full


def test_the_cap_is_hard_and_old_blocks_make_room() -> None:
    tree, rnd = RunTree(3, MIN_BYTES), random.Random(9)
    for replica in range(3):
        tree.set_capacity(replica, 10**7)
    for at in range(6_000):
        chain = random_chain(rnd, rnd.randrange(1, 400))
        tree.touch(at % 3, chain)
        assert tree.bytes_used <= MIN_BYTES
        assert hits(tree, chain, 3)[at % 3] == len(chain)
    capped, blocks = tree.capped, tree.blocks
    assert capped > 0
    assert blocks * 8 > MIN_BYTES * 0.8
    tree.check_invariants()
    huge = random_chain(rnd, MIN_BYTES // 15)
    assert tree.touch(0, huge) == len(huge)  # not stored, and nobody has to go for it
    assert (tree.capped, tree.blocks) == (capped + 1, blocks)
    assert hits(tree, huge, 3) == [0, 0, 0]
    tree.check_invariants()


def test_many_holders_of_one_run() -> None:
    tree, chain = RunTree(300), random_chain(random.Random(10), 100)
    order = list(range(300))
    random.Random(11).shuffle(order)
    for replica in order:
        tree.set_capacity(replica, 1_000)
        tree.touch(replica, chain[: replica // 3 + 1])
    assert hits(tree, chain, 300) == [replica // 3 + 1 for replica in range(300)]
    tree.touch(299, chain[:40])  # splits below 299's own 100 blocks
    assert tree.runs == 2
    tree.check_invariants()
    for replica in order:
        tree.drop(replica)
    while tree.maintain(50):
        tree.check_invariants()
    assert tree.blocks == 0


def test_refusals() -> None:
    for bad in (0, runs.MAX_REPLICAS + 1):
        with pytest.raises(ValueError, match="max_replicas"):
            RunTree(bad)
    with pytest.raises(ValueError, match="max_bytes"):
        RunTree(2, MIN_BYTES - 1)
    tree = tree_of(5, 5)
    for capacity in (0, -1, runs.MAX_CAPACITY + 1):
        with pytest.raises(ValueError, match="capacity"):
            tree.set_capacity(0, capacity)
    for call in (tree.clear, tree.drop, tree.is_free, tree.held, tree.dump, tree.capacity):
        for replica in (-1, 2):
            with pytest.raises(ValueError, match="replica"):
                call(replica)
    with pytest.raises(TypeError, match="uint64"):
        tree.touch(0, array("I", [1]))
    with pytest.raises(TypeError, match="array"):
        tree.match(array("Q", [1]), array("q", [0, 0]))
    assert tree.touch(0, array("Q")) == 0
    assert tree.match(array("Q"), array("i")) == 0


def test_no_memory_for_a_new_tree() -> None:
    for allowed in range(9):
        runs._fail_alloc_after(allowed)
        try:
            with pytest.raises(MemoryError):
                RunTree(4)
        finally:
            left = runs._fail_alloc_after(-1)
        assert left == -1
