"""The one main of the fuzz targets: rounds from a seed until the time is over.

Each target is a script that `run_sanitized.sh` starts with `--seconds N`; a round that fails names
the seed that repeats it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path


def fuzz(path: str, one_round: Callable[[random.Random], int | None]) -> None:
    """Run rounds, each with a generator of its own seed. path: the target's `__file__`.

    one_round: raises when something is wrong; may return how many steps it made.
    """
    name = Path(path).stem
    parser = argparse.ArgumentParser(description=f"Rounds of {name} until the time is over.")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (1)")
    args = parser.parse_args()
    end, seed, steps = time.monotonic() + args.seconds, args.seed, 0
    while time.monotonic() < end:
        try:
            steps += one_round(random.Random(seed)) or 1
        except BaseException:
            print(f"{name}: failed with --seed {seed}", flush=True)
            raise
        seed += 1
    print(f"{name}: {steps} steps, seeds {args.seed}..{seed - 1}, no fault")
