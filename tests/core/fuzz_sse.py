"""Random and damaged answers in random cuts through `_core.sse`, compared with the twin.

Meant to run on a build with sanitizers: python tests/core/fuzz_sse.py --seconds 20 --seed 1
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    end, rounds = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        seed = options.seed * 1_000_003 + rounds
        try:
            one_round(random.Random(seed))
        except AssertionError:
            sys.exit(f"fuzz_sse: differs from the twin at round seed {seed}")
        rounds += 1
    print(f"fuzz_sse: {rounds} rounds, no difference")


if __name__ == "__main__":
    main()
