"""Random, cut and damaged request bodies through `_core.scan`, compared with the twin.

python -m tests.core.fuzz_scan --seconds 20 --seed 1
"""

from __future__ import annotations

import random

from tests.core import bodies
from tests.core import twin_scan as twin
from tests.core.fuzzing import fuzz
from warmlane._core import scan

FIELDS = (
    *("model", "stream", "max_tokens", "salt", "session", "priority", "prompt", "tokens"),
    "transfer",
)


def one_round(rng: random.Random) -> None:
    body = bodies.body(rng, spell_keys=rng.random() < 0.1)
    if rng.random() < 0.3:
        damaged = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), *b'{}[]",:\\u'))
        body = bytes(damaged[: rng.randint(0, len(damaged))])
    scan.members(body)
    for kind in range(6):
        cap = rng.choice((4, 40, 400, 1 << 20))
        found = scan.scan_body(body, kind, cap)
        expected = twin.scan(body, kind, cap)
        if found is not None and expected is not None:
            for name in FIELDS:
                assert getattr(found, name) == getattr(expected, name), name


if __name__ == "__main__":
    fuzz(__file__, one_round)
