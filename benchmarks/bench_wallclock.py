"""Does the lab tell the truth? Policies on processes in wall-clock time against the lab's runs.

    PYTHONPATH=. python -m benchmarks.bench_wallclock [--quick] [--save] [--only agentic|synthetic]

Eight `warmlane fake-engine`s behind one `warmlane serve`, a slice of a trace through each policy
with fresh caches and a fresh router, about three minutes in all (--quick: two policies). The lab
plays the same requests: the same lengths, starts and think times on replicas with the same
constants, in the time of the wall clock, so that every constant of the router that is in seconds
means the same in both. Prompts are SHRINK times shorter on both sides, each token standing for as
many. What the lab does not have: HTTP, parsing, sockets, processes, text in place of block keys.

Good: policies come in the lab's order of mean TTFT (pairs that are within TIED of each other in
the lab have none), and each one's mean TTFT over round robin's is within 25 % of the lab's. Void
when the event loops were late by more than 5 % of the median TTFT (99th percentile of the load
generator's, mean of the replicas'). A request that fails ends the run.

Made for two cores: the processes together take well below half of one.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import msgspec

from benchmarks.bars import Bench
from warmlane.router.config import PoolConfig, Scrape
from warmlane.router.sim.demo_fleet import Replicas, RouterProcess
from warmlane.router.sim.demo_run import Measured, measure
from warmlane.router.sim.demo_slices import MODEL, Slice
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.timing import PRESETS, Timing
from warmlane.router.sim.traces import Session, Workload, find_traces, load
from warmlane.router.sim.workload import Texts, cut

REPLICAS, PER_PROCESS = 8, 4
GPU = "qwen3-32b/2xh100"
SHRINK = 4.0
SPEED = 4.0
BASELINE = "round-robin"
POLICIES = ("default", "weighted", "least-requests", BASELINE)
QUICK = ("default", BASELINE)
LAB_SEEDS = range(1, 6)  # ties break by chance: the lab's figure is the mean of these
TIED = 0.10
WITHIN = 0.25
MAX_LAG = 0.05
TICK_MS = 1
_SECONDS = ("t0_s", "weights_s", "token_s", "reduce_s", "pair_s", "kv_s", "sequence_s")

# Loads at which round robin queues and is not lost; chosen in the lab.
SLICES: dict[str, tuple[str, Slice]] = {
    "agentic": (
        "agentic_claude_code_sessions.jsonl.gz",
        Slice(
            skip=60, sessions=24, turns=5, shrink=SHRINK, output_shrink=4, speed=SPEED, rate=100,
            think_cap_s=4,
        ),
    ),
    "synthetic": (
        "mooncake_synthetic.jsonl.gz",
        Slice(skip=3000, requests=180, shrink=SHRINK, output_shrink=4, speed=SPEED, rate=0.7),
    ),
}  # fmt: skip


def slice_of(name: str, folder: Path) -> Workload:
    """The requests that both sides meet, as they are in the trace."""
    file, piece = SLICES[name]
    whole = load(folder / file, seed=1)
    rest = msgspec.structs.replace(whole, sessions=whole.sessions[piece.skip :])
    return cut(rest, sessions=piece.sessions, requests=piece.requests, turns=piece.turns)


def as_played(workload: Workload, piece: Slice) -> Workload:
    """What `sim.player` makes of it: shorter prompts and answers, in seconds of the wall clock."""
    texts = Texts(workload.block_size, piece.shrink)
    sessions: list[Session] = []
    for session in workload.sessions:
        turns = tuple(
            msgspec.structs.replace(
                turn,
                prompt=texts.tokens(turn.prompt),
                output=max(1, round(turn.output / piece.output_shrink)),
                think_s=min(turn.think_s, piece.think_cap_s) / piece.speed,
            )
            for turn in session.turns
        )
        start_s = session.start_s / piece.rate / piece.speed
        sessions.append(msgspec.structs.replace(session, start_s=start_s, turns=turns))
    return msgspec.structs.replace(
        workload, block_size=texts.tokens_per_block, sessions=tuple(sessions)
    )


def as_timed(timing: Timing, piece: Slice) -> Timing:
    """The constants of a fake engine with --scale and --speed, in seconds of the wall clock."""
    return msgspec.structs.replace(
        timing,
        **{name: getattr(timing, name) / piece.speed for name in _SECONDS},
        scale=piece.shrink,
        kv_tokens=int(timing.kv_tokens / piece.shrink),
        step_tokens=max(64, int(timing.step_tokens / piece.shrink)),
    )


def in_the_lab(workload: Workload, piece: Slice, policy: str) -> float:
    """Mean TTFT in seconds of the replicas."""
    made, timing = as_played(workload, piece), as_timed(PRESETS[GPU], piece)
    found: list[float] = []
    for seed in LAB_SEEDS:
        options = LabOptions(
            fleet=(timing,) * REPLICAS,
            think_cap_s=float("inf"),
            scrape_s=Scrape().min_interval_s,
            front_s=0.0,
            named=False,
            seed=seed,
        )
        run = Lab(made, PoolConfig(policy=policy), options).run()
        if run.failed or run.skipped or len(run.done) != made.requests:
            raise RuntimeError(f"the lab answered {len(run.done)} of {made.requests} requests")
        found.append(piece.speed * statistics.fmean(each.ttft for each in run.done))
    return statistics.fmean(found)


async def on_processes(
    workload: Workload, piece: Slice, policies: Sequence[str]
) -> dict[str, Measured]:
    """One policy after the other, each with fresh caches and a fresh router."""
    options = ["--model", MODEL, "--gpu", GPU, "--tick-ms", str(TICK_MS)]
    options += ["--speed", f"{piece.speed:g}", "--scale", f"{piece.shrink:g}"]
    fleet = Replicas(REPLICAS, options, per_process=PER_PROCESS)
    found: dict[str, Measured] = {}
    try:
        await fleet.start()
        for policy in policies:
            await fleet.reset()
            router = RouterProcess(fleet.urls, policy)
            try:
                await router.start()
                told = await measure(workload, piece, fleet, router, policy)
            finally:
                await router.stop()
            if told.errors:
                raise RuntimeError(f"{policy}: {len(told.errors)} failed: {told.errors[0]}")
            found[policy] = told
    finally:
        await fleet.stop()
    return found


def inverted(wall: dict[str, float], lab: dict[str, float]) -> list[str]:
    """Pairs that the lab tells apart and that come the other way round on processes."""
    wrong: list[str] = []
    for one, other in combinations(wall, 2):
        first, second = sorted((one, other), key=lab.__getitem__)
        if lab[first] < lab[second] * (1.0 - TIED) and wall[first] > wall[second]:
            wrong.append(f"{first} before {second}")
    return wrong


def judged(bench: Bench, name: str, told: dict[str, Measured], lab: dict[str, float]) -> None:
    """The bars of one slice."""
    wall = {policy: each.ttft_mean_s for policy, each in told.items()}
    late = max(each.lag_s / each.ttft_p50_s for each in told.values())
    why = f"loops were late by {late:.1%} of the median TTFT" if late > MAX_LAG else ""
    bench.tell(f"{name}, lateness of the loops over the median TTFT, worst policy", late, "x")
    for policy, each in told.items():
        bench.tell(f"{name}, {policy}, mean TTFT", wall[policy], "s")
        bench.tell(f"{name}, {policy}, mean TTFT in the lab", lab[policy], "s")
        bench.tell(f"{name}, {policy}, hit share", each.hit_share, "")
        bench.tell(f"{name}, {policy}, mean TTFT outside the engines", each.outside_s, "s")
    wrong = inverted(wall, lab)
    if wrong:
        print(f"# {name}, order in the lab: {'; '.join(wrong)}", flush=True)
    bench.bar(
        f"{name}, pairs of policies in another order than the lab's", len(wrong), "pairs", 0,
        scaled=False, why_void=why,
    )  # fmt: skip
    for policy in wall:
        if policy == BASELINE:
            continue
        here, there = wall[policy] / wall[BASELINE], lab[policy] / lab[BASELINE]
        bench.tell(f"{name}, {policy}, TTFT over {BASELINE}'s", here, "x")
        bench.tell(f"{name}, {policy}, TTFT over {BASELINE}'s in the lab", there, "x")
        bench.bar(
            f"{name}, {policy}, distance of that ratio from the lab's", abs(here / there - 1.0), "",
            WITHIN, scaled=False, why_void=why,
        )  # fmt: skip


def cpu_s() -> float:
    """CPU time of this process and of children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(SLICES), help="one of the slices")


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("wallclock", __doc__.splitlines()[0], argv, add_arguments)
    logging.getLogger("warmlane").setLevel(logging.ERROR)  # of modelled replicas
    policies = QUICK if bench.args.quick else POLICIES
    folder = find_traces(os.environ, Path(__file__).resolve())
    for name, (file, piece) in SLICES.items():
        if bench.args.only not in (None, name):
            continue
        if folder is None or not (folder / file).is_file():
            bench.bar(name, None, "", WITHIN, why_void="its trace is not here")
            continue
        workload = slice_of(name, folder)
        lab = {policy: in_the_lab(workload, piece, policy) for policy in policies}
        began, used = time.monotonic(), cpu_s()
        told = asyncio.run(on_processes(workload, piece, policies))
        share = (cpu_s() - used) / (time.monotonic() - began)
        bench.tell(f"{name}, CPU of all processes", share, "cores")
        judged(bench, name, told, lab)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
