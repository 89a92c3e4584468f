"""Fuzz the modelled fleet: random traffic, deaths, speeds and failing allocations.

    python tests/core/fuzz_engine_step.py [--seconds N] [--seed N]

Meant for the sanitized build (run_sanitized.sh). Checked is what holds in every history: requests
come out once, time goes forward, and an idle replica has all its blocks.
"""

from __future__ import annotations

import argparse
import random
import time
from array import array

from warmlane._core.engine_step import NEVER, Fleet, _fail_after, block_keys

TIMING = {
    "t0_s": 0.004,
    "weights_s": 0.005,
    "token_s": 2e-5,
    "reduce_s": 0.0,
    "pair_s": 9e-10,
    "kv_s": 4e-8,
    "sequence_s": 8e-6,
    "mixed": 1.15,
    "scale": 1.0,
    "adapter_step": 0.035,
    "adapter_load_s": 0.005,
}


def life(source: random.Random) -> None:
    """One fleet from start to end."""
    blocks, size = source.choice([4, 40, 400]), source.choice([1, 4, 16])
    config = {
        **TIMING,
        "blocks": blocks,
        "block_size": size,
        "max_num_seqs": source.choice([1, 3, 64]),
        "max_num_batched_tokens": source.choice([1, 16, 2048]),
        "max_loras": source.choice([1, 2]),
    }
    fleet = Fleet([config] * source.choice([1, 2, 5]), record=source.random() < 0.5)
    open_requests: set[int] = set()
    now, out = 0.0, array("i", bytes(4 * len(fleet)))

    def drain(limit: float) -> None:
        while fleet.advance(limit):
            for number, _ in fleet.finished:
                open_requests.remove(number)
            assert open_requests.issuperset(fleet.first_tokens) or fleet.finished
            for slot in range(len(fleet)):
                fleet.take_removed(slot)
                fleet.take_stored(slot)

    for number in range(source.choice([5, 100])):
        now += source.expovariate(source.choice([1.0, 100.0]))
        drain(now)
        slot = source.randrange(len(fleet))
        prompt = source.randrange(1, (blocks - 1) * size + 1)
        output = source.randrange(0, (blocks - 1) * size - prompt + 1)
        first = source.choice([0, 1000 * source.randrange(5)])
        keys = block_keys([(first, 3), (number * 10_000, 500)], 1, (prompt + output) // size)
        if source.random() < 0.1:
            _fail_after(source.randrange(4))
        try:
            fleet.add(slot, number, prompt, output, keys, now, adapter=source.randrange(4))
            open_requests.add(number)
        except MemoryError:
            pass
        _fail_after(-1)
        fleet.held(keys, out)
        if source.random() < 0.05:
            fleet.set_speed(slot, source.choice([0.5, 2.0]))
        if source.random() < 0.05:
            open_requests.difference_update(fleet.fail(slot))
    drain(NEVER)
    assert not open_requests
    for slot in range(len(fleet)):
        assert fleet.load(slot) == (0, 0, 0.0)
        assert fleet.clear_cache(slot)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    end, seed = time.monotonic() + args.seconds, args.seed
    while time.monotonic() < end:
        life(random.Random(seed))
        seed += 1
    print(f"{seed - args.seed} fleets from seed {args.seed}")


if __name__ == "__main__":
    main()
