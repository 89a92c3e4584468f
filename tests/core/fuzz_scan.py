"""Random, cut and damaged request bodies through `_core.scan`, compared with the twin.

Meant to run on a build with sanitizers: python tests/core/fuzz_scan.py --seconds 20 --seed 1
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.core import bodies
from tests.core import twin_scan as twin
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
            sys.exit(f"fuzz_scan: differs from the twin at round seed {seed}")
        rounds += 1
    print(f"fuzz_scan: {rounds} rounds, no difference")


if __name__ == "__main__":
    main()
