"""Streams of damaged and reordered external processing messages through the compiled course.

Meant for the sanitized build (run_sanitized.sh). Two pickers, one with the course and one without,
hear the same messages on the same random numbers: valid ones in any order, flipped, cut and
repeated; memory is refused now and then to the first alone. They must answer alike, and at the end
nothing may be kept. Prints the seed of a failing round.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.common import split_mix
from tests.envoy import test_course as course
from warmlane._core import expected, leads, proc_gate
from warmlane.envoy.picker import Picker

MODULES = (proc_gate, leads, expected)


def damaged(rng: random.Random, message: bytes) -> bytes:
    raw = bytearray(message)
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        at = rng.randrange(len(raw) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(raw):
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del raw[at : at + rng.randrange(1, 30)]
        elif kind == 2:
            raw[at:at] = raw[at : at + rng.randrange(1, 60)]
        else:
            raw[at:at] = rng.randbytes(rng.randrange(1, 8))
    return bytes(raw)


def messages(rng: random.Random) -> list[bytes]:
    found = course.request(rng) + course.response(rng)
    if rng.random() < 0.3:
        rng.shuffle(found)
    if rng.random() < 0.5:
        found = [damaged(rng, each) for each in found]
    return found[: rng.randrange(1, len(found) + 1)]


def one_stream(rng: random.Random, pair: tuple[Picker, Picker]) -> None:
    """The same stream on both, compared message by message."""
    streams = [course.opened(each) for each in pair]
    for message in messages(rng):
        answers = []
        for stream in streams:
            stream.receive(message)
            answers.append((stream.take(), stream.status, stream.held_bytes))
        assert answers[0] == answers[1], answers
    half = rng.random() < 0.3
    for stream in streams:
        if half:
            stream.half_closed()
        if stream._answered_at:
            stream._answered_at = 0.0  # whether it left early is a matter of the clock
        stream.closed()


def starved(rng: random.Random, picker: Picker) -> None:
    """Streams without memory: they may fail, and leave nothing."""
    for _ in range(3):
        stream = course.opened(picker)
        rng.choice(MODULES)._fail_allocation_after(rng.randrange(3))
        for message in messages(rng):
            stream.receive(message)
        stream.closed()
    for module in MODULES:
        module._fail_allocation_after(-1)


def one_round(rng: random.Random) -> None:
    level = rng.randrange(2)
    pair = course.picker(level), course.picker(level, plain=False)
    for number in range(rng.randrange(1, 30)):
        for each in pair:
            each.sow(number)
            each.rand = split_mix(number)
        one_stream(rng, pair)
        if rng.random() < 0.2:
            for each in pair:
                each.predicted.tick(1e12)
        assert course.state(pair[0]) == course.state(pair[1])
    if rng.random() < 0.3:
        starved(rng, pair[0])
    for each in pair:
        each.predicted.tick(1e12)
        assert each.router.open_tickets == each.open == each.buffered == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run the round of this seed alone")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # refused memory is told with its trace, each time
    if options.only is not None:
        one_round(random.Random(options.only))
        return
    end, rounds = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        seed = options.seed * 1_000_003 + rounds
        try:
            one_round(random.Random(seed))
        except Exception:
            print(f"fuzz_proc_course: fails at round seed {seed}", flush=True)
            raise
        rounds += 1
    print(f"fuzz_proc_course: {rounds} rounds")


if __name__ == "__main__":
    main()
