"""What the tests of the prefix tree share: prompts with common prefixes, and short calls."""

from __future__ import annotations

import random
from array import array

from warmlane._core.radix import RadixTree

REPLICAS = 5


def key_array(keys: list[int]) -> array[int]:
    return array("Q", keys)


def random_keys(count: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.getrandbits(64) | 1 for _ in range(count)]


def paths() -> list[list[int]]:
    """Prompts that share prefixes of many lengths: long for the jumps, short for the corners."""
    trunk = random_keys(300, 1)
    branch = trunk[:100] + random_keys(150, 2)
    return [
        trunk,
        branch,
        branch[:137] + random_keys(9, 3),
        trunk[:3] + random_keys(70, 4),
        trunk[:64] + random_keys(1, 5),
        trunk[:65] + random_keys(64, 6),
        random_keys(2, 7),
        random_keys(1, 8),
    ]


PATHS = paths()


def counts(tree: RadixTree, keys: list[int], replicas: int = REPLICAS) -> list[list[int]]:
    columns = [array("i", [-1] * replicas) for _ in range(3)]
    best = tree.match(key_array(keys), *columns)
    one = array("i", [-1] * replicas)
    assert tree.match_one_tier(key_array(keys), one) == max(one)
    assert one == columns[0]
    assert best == max(columns[2])
    return [list(column) for column in columns]


def settle(tree: RadixTree) -> None:
    for _ in range(100_000):
        if not tree.maintain(50):
            return
    raise AssertionError("maintain never ends")
