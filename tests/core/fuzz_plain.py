"""Random, cut and damaged request bodies through `_core.plain`, compared with twin and scan.

python -m tests.core.fuzz_plain --seconds 20 --seed 1
"""

from __future__ import annotations

import json
import random

from tests.core import bodies
from tests.core import twin_plain as twin
from tests.core.fuzzing import fuzz
from tests.core.test_plain import BLOCKS, ROOT, assert_same_as_scan, found_of


def body_of(rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return bodies.body(rng, spell_keys=rng.random() < 0.1)
    text = "".join(bodies.text(rng) * rng.randrange(20) for _ in range(rng.randrange(30)))
    fields = {"model": "m", "messages": [{"role": "user", "content": text}], "tools": [text[:99]]}
    names = rng.sample(sorted(fields), rng.randrange(1, 4))
    return json.dumps({name: fields[name] for name in names}).encode()


def one_round(rng: random.Random) -> None:
    body = body_of(rng)
    if rng.random() < 0.3:
        damaged = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), *b'{}[]",:\\u'))
        body = bytes(damaged[: rng.randint(0, len(damaged))])
    for kind in range(6):
        block = rng.choice(BLOCKS)
        found, expected = found_of(body, kind, block), twin.keys_of(body, kind, ROOT, block)
        assert_same_as_scan(body, kind, block)
        assert found is None or expected is None or found == expected


if __name__ == "__main__":
    fuzz(__file__, one_round)
