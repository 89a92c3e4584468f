"""Random, cut and damaged heads through `_core.http_head` and `http_edit`, compared with llhttp.

Meant to run on a build with sanitizers: python tests/core/fuzz_http_head.py --seconds 20 --seed 1
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.core import heads


def one_round(rng: random.Random) -> None:
    answer = rng.random() < 0.5
    raw = heads.head_of(rng, answer=answer)
    compare = heads.compare_answer if answer else heads.compare_request
    compare(raw, rng)


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
        except AssertionError as error:
            sys.exit(f"fuzz_http_head: differs from the twin at round seed {seed}: {error}")
        rounds += 1
    print(f"fuzz_http_head: {rounds} rounds, no difference")


if __name__ == "__main__":
    main()
