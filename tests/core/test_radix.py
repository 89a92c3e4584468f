"""The prefix tree against its twin: any history of stores, removals, clears and drops, in any
order and tier, with `check_invariants()` after every step."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.core import radix_twin as twin
from tests.core.radix_help import PATHS, REPLICAS, counts, key_array, random_keys, settle
from warmlane._core.radix import CPU, DISK, GPU, RadixTree

spans = st.tuples(
    st.sampled_from(range(len(PATHS))), st.integers(0, 300), st.sampled_from([1, 2, 8, 70, 300])
)
replicas = st.integers(0, REPLICAS - 1)
tiers = st.sampled_from([GPU, GPU, CPU, DISK])


class TreeMachine(RuleBasedStateMachine):
    """Random histories; the twin says what every match and every dump must be."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree(max_replicas=REPLICAS)
        self.twin = twin.RadixTree()
        self.dropped: set[int] = set()

    def span(self, where: tuple[int, int, int]) -> tuple[list[int], int]:
        path, start, length = where
        start %= len(PATHS[path])
        keys = PATHS[path][start : start + length]
        return keys, PATHS[path][start - 1] if start else 0

    @rule(replica=replicas, where=spans, tier=tiers, once=st.booleans())
    def store(self, replica: int, where: tuple[int, int, int], tier: int, once: bool) -> None:
        keys, parent = self.span(where)
        name = "insert_once" if once else "insert"
        if replica in self.dropped and not self.tree.is_free(replica):
            with pytest.raises(RuntimeError, match="dropped"):
                getattr(self.tree, name)(replica, key_array(keys), parent=parent, tier=tier)
            return
        self.dropped.discard(replica)
        lagging = self.tree.stats()["sweeping"]
        if once and lagging:
            settle(self.tree)  # whether a copy is there is only known once it has moved
            self.dropped.clear()
        got = getattr(self.tree, name)(replica, key_array(keys), parent=parent, tier=tier)
        want = getattr(self.twin, name)(replica, keys, parent=parent, tier=tier)
        assert got == want or lagging

    @rule(replica=replicas, path=st.sampled_from(range(len(PATHS))), tier=tiers)
    def store_whole(self, replica: int, path: int, tier: int) -> None:
        self.store(replica, (path, 0, 300), tier, False)

    @rule(replica=replicas, where=spans, tier=tiers, seed=st.integers(0, 3))
    def remove(self, replica: int, where: tuple[int, int, int], tier: int, seed: int) -> None:
        keys, _ = self.span(where)
        if seed == 1:
            keys.reverse()
        elif seed > 1:
            random.Random(seed).shuffle(keys)
        got = self.tree.remove(replica, key_array(keys), tier=tier)
        assert got == self.twin.remove(replica, keys, tier=tier)

    @rule(replica=replicas, path=st.sampled_from(range(len(PATHS))), at=st.integers(0, 299))
    def punch_a_hole(self, replica: int, path: int, at: int) -> None:
        key = PATHS[path][at % len(PATHS[path])]
        for tier in (GPU, CPU, DISK):
            assert self.tree.remove(replica, key_array([key]), tier=tier) == self.twin.remove(
                replica, [key], tier=tier
            )

    @rule(replica=replicas, tier=st.sampled_from([-1, GPU, CPU, DISK]))
    def clear(self, replica: int, tier: int) -> None:
        self.tree.clear(replica, tier)
        self.twin.clear(replica, tier)

    @rule(replica=replicas)
    def drop(self, replica: int) -> None:
        self.tree.drop(replica)
        self.twin.drop(replica)
        self.dropped.add(replica)

    @rule(budget_us=st.integers(0, 20))
    def maintain(self, budget_us: int) -> None:
        self.tree.maintain(budget_us)

    @precondition(lambda self: self.tree.stats()["sweeping"] or self.tree.under_counting)
    @rule()
    def maintain_to_the_end(self) -> None:
        settle(self.tree)
        self.dropped.clear()
        assert not self.tree.under_counting

    @rule(path=st.sampled_from(range(len(PATHS))), cut=st.integers(0, 300), stray=st.booleans())
    def match(self, path: int, cut: int, stray: bool) -> None:
        keys = PATHS[path][:cut] + (random_keys(90, 99) if stray else [])
        got, want = counts(self.tree, keys), self.twin.match(keys, REPLICAS)
        if self.tree.under_counting:
            assert all(
                g <= w for a, b in zip(got, want, strict=True) for g, w in zip(a, b, strict=True)
            )
        else:
            assert got == want

    @invariant()
    def sound(self) -> None:
        self.tree.check_invariants()
        for path in PATHS[:3]:
            got, want = counts(self.tree, path), self.twin.match(path, REPLICAS)
            if self.tree.under_counting:
                assert all(
                    g <= w
                    for a, b in zip(got, want, strict=True)
                    for g, w in zip(a, b, strict=True)
                )
            else:
                assert got == want
            for low, high in pairwise(got):
                assert all(a <= b for a, b in zip(low, high, strict=True))

    def teardown(self) -> None:
        settle(self.tree)
        held = {key: holders for key, (_, holders) in self.tree.dump().items() if holders}
        assert held == self.twin.held()
        for path in PATHS:
            assert counts(self.tree, path) == self.twin.match(path, REPLICAS)
        assert self.tree.stats()["unknown_removals"] == self.twin.unknown
        for replica in range(REPLICAS):
            self.tree.drop(replica)
        settle(self.tree)
        self.tree.check_invariants()
        assert self.tree.blocks == 0
        assert all(self.tree.is_free(replica) for replica in range(REPLICAS))


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_three_counts_of_a_mixed_chain() -> None:
    tree, keys = RadixTree(), random_keys(6, 10)
    tree.insert(1, key_array(keys[:2]))
    tree.insert(1, key_array(keys[2:3]), parent=keys[1], tier=CPU)
    tree.insert(1, key_array(keys[3:4]), parent=keys[2])
    tree.insert(1, key_array(keys[4:]), parent=keys[3], tier=DISK)
    assert [column[1] for column in counts(tree, keys)] == [2, 4, 6]


def test_a_hole_hides_and_the_parent_shows_again() -> None:
    tree, keys = RadixTree(), random_keys(200, 11)
    tree.insert(0, key_array(keys))
    tree.insert(1, key_array(keys))
    assert tree.remove(0, key_array(keys[70:71])) == 1
    assert counts(tree, keys)[2][:2] == [70, 200]
    assert tree.holes == 1
    assert tree.insert(0, key_array(keys[70:71]), parent=keys[69]) == 1
    assert counts(tree, keys)[2][:2] == [200, 200]
    tree.check_invariants()


def test_stored_twice_needs_two_removals() -> None:
    tree, keys = RadixTree(), random_keys(3, 12)
    tree.insert(0, key_array(keys))
    tree.insert(0, key_array(keys[2:]), parent=keys[1])
    assert tree.remove(0, key_array(keys[2:])) == 1
    assert counts(tree, keys)[0][0] == 3
    assert tree.remove(0, key_array(keys[2:])) == 1
    assert counts(tree, keys)[0][0] == 2
    assert tree.remove(0, key_array(keys[2:])) == 0
    assert tree.stats()["unknown_removals"] == 1


def test_presence_only_needs_one_removal() -> None:
    tree, keys = RadixTree(), random_keys(3, 13)
    assert tree.insert_once(0, key_array(keys)) == 3
    assert tree.insert_once(0, key_array(keys)) == 0
    assert tree.remove(0, key_array(keys)) == 3
    assert tree.blocks == 0


def test_a_chain_shows_when_its_unknown_parent_comes() -> None:
    tree, keys = RadixTree(), random_keys(100, 14)
    tree.insert(2, key_array(keys[50:]), parent=keys[49])
    assert counts(tree, keys)[2][2] == 0
    assert tree.dump()[keys[49]] == (None, {})
    tree.insert(2, key_array(keys[:50]))
    assert counts(tree, keys)[2][2] == 100
    tree.check_invariants()


def test_hiding_more_than_one_slice_takes_effect_at_once() -> None:
    """One root block with 40,000 children, each with one child: far beyond the inline budget."""
    tree, root = RadixTree(), random_keys(1, 15)
    tails = random_keys(80_000, 16)
    tree.insert(0, key_array(root))
    for i in range(0, 80_000, 2):
        tree.insert(0, key_array(tails[i : i + 2]), parent=root[0])
    tree.insert(1, key_array(root + tails[:2]))
    tree.remove(0, key_array(root))
    assert tree.stats()["hides_pending"]
    tree.check_invariants()
    for i in (0, 2, 40_000, 79_998):
        assert counts(tree, root + tails[i : i + 2], 2)[2] == [0, 3 if i == 0 else 1]
    tree.insert(0, key_array(root))
    for step in range(10_000):
        if step % 50 == 0:
            tree.check_invariants()
            got = counts(tree, root + tails[-2:], 2)[2]
            assert got[0] <= 3
        if not tree.maintain(20):
            break
    for i in (0, 2, 40_000, 79_998):
        assert counts(tree, root + tails[i : i + 2], 2)[2][0] == 3


def test_walks_survive_the_removal_of_what_they_stand_on() -> None:
    tree, root = RadixTree(), random_keys(1, 17)
    tails = random_keys(20_000, 18)
    tree.insert(0, key_array(root))
    tree.insert(1, key_array(root))
    for tail in tails:
        tree.insert(0, key_array([tail]), parent=root[0])
    tree.remove(0, key_array(root))
    order = random.Random(3)
    left = tails[:]
    while left:
        tree.remove(0, key_array([left.pop(order.randrange(len(left))) for _ in range(10)]))
        if order.random() < 0.3:
            tree.maintain(1)
        if len(left) % 500 == 0:
            tree.check_invariants()
    settle(tree)
    tree.check_invariants()
    assert tree.blocks == 1


def test_long_empty_chains_are_freed_in_slices() -> None:
    tree, keys = RadixTree(), random_keys(50_000, 19)
    tree.insert(0, key_array(keys))
    tree.remove(0, key_array(keys))  # head first: all of it goes with the last block
    assert tree.blocks > 0
    tree.check_invariants()
    settle(tree)
    assert tree.blocks == 0
    tree.check_invariants()


def test_drop_hides_at_once_and_frees_its_number_later() -> None:
    tree, keys = RadixTree(), random_keys(5_000, 20)
    tree.insert(0, key_array(keys))
    tree.insert(1, key_array(keys[:100]))
    tree.drop(0)
    assert counts(tree, keys)[2][:2] == [0, 100]
    assert not tree.is_free(0)
    with pytest.raises(RuntimeError, match="dropped"):
        tree.insert(0, key_array(keys))
    assert tree.maintain(10)
    tree.check_invariants()
    settle(tree)
    assert tree.is_free(0)
    assert tree.blocks == 100
    assert tree.insert(0, key_array(keys)) == 5_000


def test_clear_lets_the_replica_store_again_at_once() -> None:
    tree, keys = RadixTree(), random_keys(5_000, 21)
    tree.insert(0, key_array(keys))
    tree.clear(0)
    assert counts(tree, keys)[2][0] == 0
    tree.insert(0, key_array(keys[:10]))
    assert counts(tree, keys)[2][0] == 10
    settle(tree)
    assert counts(tree, keys)[2][0] == 10
    assert tree.blocks == 10


def test_clear_of_one_tier_keeps_the_others() -> None:
    tree, keys = RadixTree(), random_keys(300, 22)
    tree.insert(0, key_array(keys))
    tree.insert(0, key_array(keys[:200]), tier=CPU)
    tree.clear(0, GPU)
    assert counts(tree, keys)[0][0] == 0
    tree.insert(0, key_array(keys[:5]))
    settle(tree)
    tree.check_invariants()
    assert [column[0] for column in counts(tree, keys)] == [5, 200, 200]


def test_clearing_without_maintenance_is_bounded() -> None:
    """More clears than there are lanes for dead lives: the oldest is swept on the spot."""
    tree, keys = RadixTree(max_replicas=2), random_keys(30, 23)
    for turn in range(1_000):
        tree.insert(turn % 2, key_array(keys[: 10 + turn % 20]), tier=turn % 3)
        tree.insert(turn % 2, key_array(keys[:5]), tier=CPU)
        tree.clear(turn % 2, GPU if turn % 5 else -1)
        if turn % 50 == 0:
            tree.check_invariants()
    tree.clear(0)
    tree.clear(1)
    settle(tree)
    assert tree.blocks == 0
    assert tree.insert(0, key_array(keys)) == 30
    tree.check_invariants()


def test_a_ring_of_parents_is_refused_and_freed() -> None:
    tree, keys = RadixTree(), random_keys(3, 24)
    tree.insert(0, key_array(keys[:1]), parent=keys[0])
    tree.insert(0, key_array([keys[1]]), parent=keys[2])
    tree.insert(0, key_array([keys[2]]), parent=keys[1])
    tree.check_invariants()
    assert tree.stats()["conflicts"] == 2
    assert counts(tree, keys)[2] == [0] * REPLICAS
    assert tree.remove(0, key_array(keys)) == 3
    settle(tree)
    assert tree.blocks == 0
    tree.check_invariants()


def test_a_record_stays_short_under_churn() -> None:
    tree = RadixTree()
    keys = [key_array(random_keys(1, seed)) for seed in range(100, 160)]
    base = tree.bytes_used
    for turn in range(20_000):
        tree.insert(0, keys[turn % 60])
        tree.remove(0, keys[(turn + 30) % 60])
    tree.check_invariants()
    assert tree.bytes_used - base < 64 * 1024


@pytest.mark.parametrize("replicas", [1, 4096])
def test_many_replicas(replicas: int) -> None:
    tree, keys = RadixTree(max_replicas=replicas), random_keys(70, 25)
    for replica in range(replicas):
        tree.insert(replica, key_array(keys[: 1 + replica % 70]))
    got = counts(tree, keys, replicas)
    assert got[0] == [1 + replica % 70 for replica in range(replicas)]
    tree.check_invariants()


def test_columns_may_be_shorter_than_the_tree() -> None:
    tree, keys = RadixTree(), random_keys(5, 26)
    tree.insert(7, key_array(keys))
    tree.insert(1, key_array(keys[:2]))
    assert counts(tree, keys, 3)[2] == [0, 2, 0]


def test_the_example_of_the_docs() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "radix.md").read_text()
    example = text.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(compile(example, "docs/radix.md", "exec"), names)
    assert names["best"] == 4
