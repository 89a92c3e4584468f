"""Random and damaged answers in random cuts through `_core.sse`, compared with the twin.

python -m tests.core.fuzz_sse --seconds 20 --seed 1
"""

from __future__ import annotations

import random

from tests.core.fuzzing import fuzz
from tests.core.test_sse import assert_as_twin, fed, findings, random_body


def one_round(rng: random.Random) -> None:
    body = random_body(rng)
    limit = rng.choice((0, 5, 40, 1 << 18))
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(9)))
    assert_as_twin(fed(body, cuts, text_bytes=limit), body, text_bytes=limit)
    damaged = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        damaged[rng.randrange(len(damaged))] = rng.choice((rng.randrange(256), *b'{}[]",:\\u\r\n'))
    broken = bytes(damaged[: rng.randint(0, len(damaged))])
    each = fed(broken, list(range(1, len(broken))))
    assert findings(fed(broken, [])) == findings(each), broken


if __name__ == "__main__":
    fuzz(__file__, one_round)
