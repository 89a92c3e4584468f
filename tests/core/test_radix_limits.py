"""The prefix tree at its limits: the memory cap, failing allocations, wrong arguments."""

from __future__ import annotations

import random
from array import array

import pytest

from tests.core import radix_twin as twin
from tests.core.radix_help import counts, key_array, random_keys, settle
from warmlane._core.radix import CPU, DISK, GPU, RadixTree, _fail_alloc_after


def cap_tree(
    cap: int, replicas: int, seed: int
) -> tuple[RadixTree, twin.RadixTree, list[list[int]]]:
    """Fill a small tree far beyond its cap with chains of replicas that share prefixes."""
    tree, model, source = RadixTree(cap), twin.RadixTree(), random.Random(seed)
    prompts: list[list[int]] = []
    for turn in range(6_000):
        if prompts and source.random() < 0.5:
            base = source.choice(prompts[-200:])
            base = base[: source.randrange(1, len(base) + 1)]
        else:
            base = []
        prompt = base + random_keys(source.randrange(1, 60), source.getrandbits(60))
        prompts.append(prompt)
        replica, tier = source.randrange(replicas), source.choice([GPU, GPU, CPU])
        tree.insert(replica, key_array(prompt), tier=tier)
        model.insert(replica, prompt, tier=tier)
        if source.random() < 0.2:
            old = source.choice(prompts)
            tree.remove(replica, key_array(old[::-1]), tier=tier)
            model.remove(replica, old[::-1], tier=tier)
        if turn % 300 == 0:
            tree.check_invariants()
    return tree, model, prompts


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_cap_holds_and_never_over_counts(seed: int) -> None:
    cap = 5 << 20
    tree, model, prompts = cap_tree(cap, 6, seed)
    tree.check_invariants()
    assert tree.bytes_used <= cap
    assert tree.capped > 0
    assert tree.stats()["capped_replicas"] > 0
    assert tree.under_counting
    found = 0
    for prompt in prompts[::20]:
        got, want = counts(tree, prompt, 6), model.match(prompt, 6)
        for a, b in zip(got, want, strict=True):
            assert all(g <= w for g, w in zip(a, b, strict=True))
        found += max(got[2]) == len(prompt)
    assert found > 20  # the cap forgets some, not all
    for replica in range(6):
        tree.drop(replica)
    settle(tree)
    assert tree.stats()["capped_replicas"] == 0
    assert tree.blocks == 0
    tree.check_invariants()


def test_eviction_takes_tails_and_spares_small_replicas() -> None:
    tree = RadixTree(5 << 20)
    small = random_keys(200, 30)
    tree.insert(1, key_array(small))
    first = random_keys(400, 31)
    tree.insert(0, key_array(first))
    seed = 32
    while tree.capped < 50:
        tree.insert(0, key_array(random_keys(400, seed)))
        seed += 1
    assert counts(tree, small, 2)[0][1] == 200
    left = counts(tree, first, 2)[0][0]
    assert 0 < left < 400  # the oldest chain lost its tail
    for more in range(seed, seed + 300):
        tree.insert(0, key_array(random_keys(400, more)))
    assert counts(tree, small, 2)[0][1] == 200
    tree.check_invariants()


def failing_calls(tree: RadixTree, keys: list[int]) -> None:
    """A history that needs every kind of allocation."""
    for replica in range(12):
        tree.insert(replica, key_array(keys))
    tree.insert(3, key_array(keys[:900]), tier=CPU)
    tree.remove(3, key_array(keys[5:6]))
    tree.remove(4, key_array(keys[5:6]))
    tree.insert(4, key_array(keys[5:6]), parent=keys[4], tier=DISK)
    tree.clear(3, GPU)
    tree.drop(5)
    for i in range(40):
        tree.insert(20 + i, key_array(random_keys(3, i)), parent=keys[i])
    settle(tree)


def test_every_failed_allocation_leaves_the_tree_whole() -> None:
    keys = random_keys(9_000, 40)
    raised = after = 0
    while True:
        tree = RadixTree()
        _fail_alloc_after(after)
        try:
            failing_calls(tree, keys)
        except MemoryError:
            raised += 1
        finally:
            not_reached = _fail_alloc_after(-1) >= 0
        tree.check_invariants()
        if not_reached:
            break
        settle(tree)
        failing_calls(tree, keys)
        tree.check_invariants()
        assert counts(tree, keys, 12)[2][0] == len(keys)
        after = after + 1 if after < 40 else after + after // 16
    assert raised > 40


def test_failing_constructor() -> None:
    for after in range(17):
        _fail_alloc_after(after)
        with pytest.raises(MemoryError):
            RadixTree()
    _fail_alloc_after(-1)


def test_bad_arguments() -> None:
    tree, keys = RadixTree(max_replicas=4), key_array(random_keys(2, 50))
    column, other = array("i", [0] * 4), array("i", [0] * 3)
    with pytest.raises(ValueError, match="replica"):
        tree.insert(4, keys)
    with pytest.raises(ValueError, match="replica"):
        tree.drop(-1)
    with pytest.raises(ValueError, match="tier"):
        tree.insert(0, keys, tier=3)
    with pytest.raises(ValueError, match="tier"):
        tree.clear(0, 5)
    with pytest.raises(ValueError, match="key is 0"):
        tree.insert(0, array("Q", [1, 0]))
    with pytest.raises(ValueError, match="length"):
        tree.match(keys, column, column, other)
    with pytest.raises(TypeError, match="array"):
        tree.match_one_tier(keys, array("q", [0] * 4))
    for wrong in (array("I", [1, 2]), array("d", [1.0]), b"12345678", [1, 2]):
        with pytest.raises((TypeError, BufferError)):
            tree.insert(0, wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, BufferError)):
            tree.match(wrong, column, column, column)  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError)):
        tree.remove(0, memoryview(array("Q", range(1, 9)))[::2])
    assert tree.insert(0, memoryview(array("Q", [7])).toreadonly()) == 1
    with pytest.raises(ValueError, match="max_bytes"):
        RadixTree(1000)
    with pytest.raises(ValueError, match="max_replicas"):
        RadixTree(max_replicas=5000)
    assert tree.insert(0, array("Q")) == 0
    tree.remove(0, array("Q", [7]))
    assert tree.match(array("Q"), column, column, column) == 0
