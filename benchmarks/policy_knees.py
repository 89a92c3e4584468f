"""Where do the fleets of `bench_policies` begin to queue? Measured, not set by hand.

    PYTHONPATH=. python -m benchmarks.policy_knees            # all; some minutes on two cores
    PYTHONPATH=. python -m benchmarks.policy_knees coding     # these workloads, the others stay

The knee of a fleet is the rate at which the mean TTFT of its workload is RISE times that of the
idle fleet. Idle is a rate so low that requests hardly meet: a further quarter of it changes mean
TTFT by less than IDLE_CHANGE. The policy is one of others, so that ours does not set the loads it
is judged at; the sample is the middle one of the cell's; view and world are the cell's. Found by
halving on the logarithm of the rate, to WIDTH. Writes benchmarks/policy_knees.json, which
`policy_cells.py` reads. Good is: every fleet has a knee.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.policy_cells import KNEES, SAMPLES, SOURCES, Fleet, fleets, special
from benchmarks.policy_runs import options_of, pool_of, sample_of
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.replay_report import Slo, figures
from warmlane.router.sim.traces import find_traces

YARDSTICK = "llmd-weighted-live"
SAMPLE = SAMPLES // 2
RISE = 2.0
IDLE_CHANGE = 0.03
WIDTH = 1.03  # upper end over lower end
STEPS = 12  # down to idle, and up to the knee: factors of 4 and 2
FIRST = 0.25  # rate to begin with, for 8 replicas
RULE = (
    f"the knee is the rate at which mean TTFT under {YARDSTICK} is {RISE:g} times that of the idle"
    f" fleet; sample {SAMPLE + 1} of {SAMPLES}; geometric middle of below and above"
)


class Point(NamedTuple):
    """Mean TTFT in seconds at a rate."""

    rate: float
    ttft_s: float


class Knee(NamedTuple):
    """below, above: the last rates on both sides of it; ttft_s at the knee itself."""

    knee: float
    ttft_s: float
    idle: Point
    below: Point
    above: Point


class NoKnee(Exception):
    """Mean TTFT does not settle, or does not rise, within STEPS."""


def find(ttft: Callable[[float], float], first: float) -> Knee:
    """The knee of a mean TTFT (seconds) by rate; first: where to begin. NoKnee."""

    def at(rate: float) -> Point:
        rate = float(f"{rate:.4g}")
        return Point(rate, ttft(rate))

    start = idle = at(first)
    for _ in range(STEPS):
        lower = at(idle.rate / 4)
        settled = abs(lower.ttft_s / idle.ttft_s - 1.0) < IDLE_CHANGE
        idle = lower
        if settled:
            break
    else:
        raise NoKnee(f"mean TTFT is {idle.ttft_s:.4g} s at {idle.rate:g} and still changes")
    bar = RISE * idle.ttft_s
    below = start if start.ttft_s < bar else idle
    for _ in range(2 * STEPS):
        above = at(below.rate * 2)
        if above.ttft_s >= bar:
            break
        below = above
    else:
        raise NoKnee(f"mean TTFT is {below.ttft_s:.4g} s at {below.rate:g}, idle {idle.ttft_s:.4g}")
    while above.rate > WIDTH * below.rate:
        middle = at(sqrt(below.rate * above.rate))
        below, above = (below, middle) if middle.ttft_s >= bar else (middle, above)
    knee = at(sqrt(below.rate * above.rate))
    return Knee(*knee, idle, below, above)


def measure(job: tuple[Fleet, str]) -> tuple[str, Knee, float]:
    """Name of the fleet, its knee, CPU seconds."""
    fleet, traces = job
    logging.getLogger("warmlane.watchdog").setLevel(logging.ERROR)  # of modelled replicas
    began = time.process_time()

    def ttft(rate: float) -> float:
        cell = fleet.cell(1.0, rate)
        made, since_s = sample_of(cell, SAMPLE, traces)
        # Idle fleets are played for days. The yardstick looks at queues for itself, not at scrapes.
        options = msgspec.structs.replace(options_of(cell, SAMPLE), scrape_s=max(1.0, 2 / rate))
        run = Lab(made, pool_of(YARDSTICK, options.fleet), options).run()
        return figures(run, Slo(), since_s).ttft.mean

    try:
        found = find(ttft, FIRST * fleet.replicas / 8)
    except NoKnee as error:
        raise NoKnee(f"{fleet.name}: {error}") from None
    return fleet.name, found, time.process_time() - began


def row(found: Knee) -> dict[str, object]:
    """What KNEES holds of a fleet."""
    return {
        "knee": found.knee,
        "idle_ttft_s": round(found.idle.ttft_s, 5),
        "knee_ttft_s": round(found.ttft_s, 5),
        "idle_rate": found.idle.rate,
        "below": [found.below.rate, round(found.below.ttft_s, 5)],
        "above": [found.above.rate, round(found.above.ttft_s, 5)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="*", help=f"of {', '.join(SOURCES)} (all)")
    parser.add_argument("--missing", action="store_true", help="those that have none so far")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    unknown = [each for each in args.source if each not in SOURCES]
    if unknown:
        parser.error(f"{unknown[0]}: no such workload")
    rows: dict[str, object] = {}
    every = [*fleets(), *special()]
    chosen = [each for each in every if not args.source or each.source in args.source]
    traces = find_traces(os.environ, Path(__file__))
    if traces is None and any(":" not in SOURCES[each.source].file for each in chosen):
        parser.error("no traces here: docs/workloads.md says where they are looked for")
    if args.source or args.missing:
        rows = json.loads(KNEES.read_text())["fleets"] if KNEES.exists() else {}
        chosen = [each for each in chosen if not (args.missing and each.name in rows)]
    jobs = [(each, str(traces)) for each in sorted(chosen, key=lambda each: -each.replicas)]
    with get_context("spawn").Pool(max(1, args.processes)) as pool:
        for number, (name, found, cpu_s) in enumerate(pool.imap_unordered(measure, jobs), 1):
            print(
                f"{number}/{len(jobs)} {name}: knee {found.knee:g}, mean TTFT idle"
                f" {found.idle.ttft_s:.3f} s, there {found.ttft_s:.3f} s ({cpu_s:.0f} s of CPU)",
                flush=True,
            )
            rows[name] = row(found)
            there = {each.name: rows[each.name] for each in every if each.name in rows}
            KNEES.write_text(json.dumps({"rule": RULE, "fleets": there}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
