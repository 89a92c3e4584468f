"""Random buffers, sizes and cuts through `_core.hashing`, compared with the twin.

python -m tests.core.fuzz_hashing --seconds 20 --seed 1
"""

from __future__ import annotations

import random

import xxhash

from tests.core import twin_hashing as twin
from tests.core.fuzzing import fuzz
from warmlane._core import hashing


def one_round(rng: random.Random) -> None:
    block = rng.randint(1, 232)
    whole = rng.randbytes(rng.choice((0, 1, block - 1, block, block + 1, rng.randrange(3000))))
    cut, root = rng.randint(0, len(whole)), rng.getrandbits(64) | 1
    first = hashing.text_keys(root, whole[:cut], block)
    carry = whole[len(first) * block : cut]
    longer = hashing.text_keys_extend(first, root, carry, whole[cut:], block)
    assert list(memoryview(longer)) == twin.chain(root, whole, block)
    size = rng.choice((1, 2, 16, 58, 59, 64, 300))
    tokens = rng.randbytes(4 * rng.randrange(1200))
    got = hashing.token_keys(root, memoryview(tokens), size)
    assert list(memoryview(got)) == twin.chain(root, tokens, size * 4)
    assert hashing.digest(whole * 4) == twin.digest(whole * 4)
    # Exact-size copies, so that a read past either end is seen by AddressSanitizer.
    for length in range(0, 300, rng.randint(1, 7)):
        data = bytearray(rng.randbytes(length))
        assert hashing.xxh3(data) == xxhash.xxh3_64_intdigest(data)


if __name__ == "__main__":
    fuzz(__file__, one_round)
