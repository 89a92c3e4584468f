"""The load of the index benchmark, made alike in every process from the standard library alone.

Prompts of a fixed number of blocks. The first 32 blocks are one of 50 families (system prompts);
each prompt lies on 3 random replicas, on one whole, on the others 60 % and 30 % of it.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator

FAMILIES = 50
FAMILY_BLOCKS = 32
DEPTHS = (1.0, 0.6, 0.3)


def random_keys(source: random.Random, count: int) -> array[int]:
    """Keys as good as hashes: 64 random bits, never 0 (the low bit is set)."""
    keys = array("Q")
    keys.frombytes(source.randbytes(8 * count))
    for i in range(0, count, 64):
        keys[i] |= 1
    return keys


def prompts(blocks: int, replicas: int, seed: int) -> Iterator[tuple[array[int], list[int]]]:
    """Endless (prompt, its three replicas in the order of DEPTHS)."""
    source = random.Random(seed)
    families = [random_keys(source, FAMILY_BLOCKS) for _ in range(FAMILIES)]
    while True:
        prompt = source.choice(families) + random_keys(source, blocks - FAMILY_BLOCKS)
        yield prompt, source.sample(range(replicas), len(DEPTHS))
