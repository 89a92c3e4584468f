"""Chunked bodies, whole and damaged, in random cuts through `_core.chunks`, beside the twin.

python -m tests.core.fuzz_chunks --seconds 20 --seed 1
"""

from __future__ import annotations

import random

from tests.core.fuzzing import fuzz
from tests.core.test_chunks import assert_as_twin, good


def one_round(rng: random.Random) -> None:
    data = bytearray(good(rng))
    for _ in range(rng.choice((0, 0, 1, 3))):
        data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), *b"\r\n0f; \t"))
    cuts = [rng.randrange(len(data) + 1) for _ in range(rng.randrange(9))]
    assert_as_twin(bytes(data) + rng.choice((b"", b"POST / HTTP/1.1\r\n")), cuts)


if __name__ == "__main__":
    fuzz(__file__, one_round)
