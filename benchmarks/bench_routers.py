"""Do several routers that hear each other place requests as well as one? Mean TTFT over one's.

    PYTHONPATH=. python -m benchmarks.bench_routers [--quick] [--save] [--only lab|processes]

- Lab: WORKLOADS x views x seeds, 8 modelled replicas; 1, 2 and 4 routers, each request through one
  of them by chance, messages every 50 ms. Good: 2 routers <= 1.05, 4 <= 1.10, as the geometric mean
  of the seeds' ratios in each cell. Told beside: the same without messages (docs/share.md).
- Processes: `warmlane fake-engine`s at their real speed, 1, 2 and 4 `warmlane serve` and a real
  Valkey (a wheel, see tests/share_server.py), requests to the routers in turn. A round plays one
  sequence of requests to each of the three, in an order that changes with the round; the next round
  draws another sequence. The bars are on the geometric mean of the rounds' ratios. A round does not
  count when a loop (the load generator's or an engine's) was late by more than 5 % of the median
  TTFT of one router. Void: fewer than three rounds left, or a bar missed whose paired 95 %
  interval holds the bar. At most 15 minutes. `--apart` adds two routers without messages: what the
  measurement must be able to see (the lab has 1.4 for this load).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import lru_cache
from math import exp, log
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import NamedTuple

from _pytest.outcomes import Skipped
from msgspec.structs import replace

from benchmarks.bars import Bench
from tests.share_server import Server
from warmlane.router.config import PoolConfig
from warmlane.router.sim.client import Client
from warmlane.router.sim.demo_fleet import Replicas, RouterProcess, read_metrics
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.player import LagMeter, Play, play
from warmlane.router.sim.replay import fleet_of
from warmlane.router.sim.replay_report import paired
from warmlane.router.sim.replay_workloads import SharedPrefix, shared_prefix, workload
from warmlane.router.sim.traces import Session, Workload, find_traces
from warmlane.router.sim.workload import cut, generate

LIMITS = {2: 1.05, 4: 1.10}
QWEN, LLAMA = "qwen3-32b/2xh100", "llama-3.1-8b/h100"
SHARE_S = 0.05
MAX_LAG = 0.05
# Of the processes. Near the knee in the lab, and light enough that two cores carry nine processes.
REPLICAS, ROUNDS, LEAST_ROUNDS = 4, 12, 3
BUDGET_S = 900.0
HOW = Play(model="fake", think_cap_s=1.0)
ENGINE = ("--gpu", "qwen3-32b/2xa100")
SPAN_S, AGENTS, TURNS = 16.0, 30, 5
GROUPS = SharedPrefix(groups=12, prompts=16, system=3000, question=800, output=32, rate=12.0)
APART = -2


class Source(NamedTuple):
    """A workload of the lab near its knee. file: of the traces, else built in."""

    name: str
    file: bool
    profile: str
    rate: float
    sessions: int


WORKLOADS = (
    Source("mooncake_conversation_0-40min.jsonl.gz", True, QWEN, 1.0, 1200),
    Source("taubench_airline_gpt4o.jsonl.gz", True, LLAMA, 30.0, 0),
    Source("chat", False, LLAMA, 6.0, 300),
    Source("agent", False, LLAMA, 3.0, 300),
    Source("shared-prefix:rounds=2", False, QWEN, 1.0, 0),
)


@lru_cache(maxsize=2)
def _made(name: str, seed: int, sessions: int) -> Workload:
    return workload(name, seed=seed, sessions=sessions)


def ttft(source: Source, view: str, routers: int, share_s: float, seed: int, traces: Path) -> float:
    """Mean TTFT of one run, seconds."""
    name = str(traces / source.name) if source.file else source.name
    options = LabOptions(
        fleet=fleet_of(source.profile, 8),
        rate=source.rate,
        view=view,
        max_prompt=120_000,
        seed=seed,
        routers=routers,
        share_s=share_s,
    )
    done = Lab(_made(name, seed, source.sessions), PoolConfig(), options).run().done
    return sum(each.ttft for each in done) / len(done)


def lab(bench: Bench, traces: Path | None) -> None:
    """A cell for each workload and view."""
    seeds = range(1, 3 if bench.args.quick else 4)
    for source in WORKLOADS:
        for view in ("approximate", "exact"):
            name = f"lab, {source.name.partition(':')[0].partition('.')[0]}, {view}"
            if source.file and traces is None:
                for routers, limit in LIMITS.items():
                    why = "its trace is not here"
                    bench.bar(f"{name}, {routers} routers", None, "x", limit, why_void=why)
                continue
            folder = traces or Path()
            one = [ttft(source, view, 1, 0.0, seed, folder) for seed in seeds]
            for routers, limit in LIMITS.items():
                for share_s in (SHARE_S, 0.0):
                    many = [ttft(source, view, routers, share_s, seed, folder) for seed in seeds]
                    ratios = [a / b for a, b in zip(many, one, strict=True)]
                    value = exp(sum(map(log, ratios)) / len(ratios))
                    if share_s:
                        told = f"{name}, {routers} routers"
                        bench.bar(told, value, "x", limit, scaled=False)
                        bench.tell(f"{told}, worst seed", max(ratios), "x")
                    else:
                        bench.tell(f"{name}, {routers} routers apart", value, "x")


def sequence(seed: int) -> Workload:
    """Sessions of agents that come back, and single questions to a few long prompts, mixed."""
    agents = cut(generate("agent", AGENTS, seed=seed), turns=TURNS)
    pace = 0.8 * SPAN_S / max(session.start_s for session in agents.sessions)
    sessions: list[Session] = []
    for session in agents.sessions:
        turns = tuple(replace(turn, output=max(1, turn.output // 4)) for turn in session.turns)
        start_s = session.start_s * pace
        sessions.append(replace(session, name=f"a{session.name}", start_s=start_s, turns=turns))
    for session in shared_prefix(GROUPS, seed).sessions:
        (turn,) = session.turns
        runs = tuple((first + (1 << 61), blocks) for first, blocks in turn.runs)
        turns = (replace(turn, runs=runs),)
        sessions.append(replace(session, name=f"s{session.name}", turns=turns))
    sessions.sort(key=lambda session: session.start_s)
    return replace(agents, name="agents and shared prefixes", sessions=tuple(sessions))


class Played(NamedTuple):
    """One arm of a round, seconds. ttft, median: as clients saw it; inside: mean in the engines,
    by their own clock; lag: 99th percentile of the generator's lateness or the engines' mean.
    """

    ttft: float
    median: float
    inside: float
    lag: float


async def one_arm(fleet: Replicas, made: Workload, routers: int, url: str) -> Played:
    """Fresh routers, empty caches. routers: below 0 without messages."""
    await fleet.reset()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        config = folder / "share.yaml"
        config.write_text(f"share: {{url: '{url}'}}\n" if routers > 1 else "{}\n")
        options = ["--config", str(config)]
        started = [
            RouterProcess(fleet.urls, "default", options=options) for _ in range(abs(routers))
        ]
        for router in started:
            stack.push_async_callback(router.stop)
        await asyncio.gather(*(router.start() for router in started))
        await heard(started, routers - 1)
        before = await fleet.counters()
        meter = LagMeter()
        meter.start()
        try:
            results = await play(made, [router.url for router in started], HOW)
        finally:
            _, lag_s = await meter.stop()
        after = await fleet.counters()
    wrong = [result.error for result in results if result.error]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(results)} requests failed: {wrong[0]}")

    def grown(name: str) -> float:
        return sum(new[name] - old[name] for old, new in zip(before, after, strict=True))

    late_s = grown("warmlane_fake:loop_lag_seconds_sum") / grown("warmlane_fake:wakes_total")
    times = sorted(result.ttft_s for result in results)
    ttft = "vllm:time_to_first_token_seconds_"
    inside = grown(f"{ttft}sum") / grown(f"{ttft}count")
    return Played(sum(times) / len(times), times[len(times) // 2], inside, max(lag_s, late_s))


async def heard(started: Sequence[RouterProcess], peers: int) -> None:
    """Wait until every router hears all others."""
    for router in started if peers > 0 else ():
        client = Client(router.admin_url)
        for _ in range(400):
            page = read_metrics((await client.get("/metrics")).body.decode())
            if page.get("warmlane_share_peers") == peers:
                break
            await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"{router.url} does not hear {peers} others")
        await client.close()


def is_late(arms: dict[int, Played]) -> bool:
    """Whether a loop was too late in this round."""
    return max(arm.lag for arm in arms.values()) > MAX_LAG * arms[1].median


async def played(arms: list[int], rounds: int) -> list[dict[int, Played]]:
    """Rounds with all arms, until so many count or the time is over."""
    server = Server("valkey")
    fleet = Replicas(REPLICAS, ["--model", HOW.model, *ENGINE])
    found: list[dict[int, Played]] = []
    begun = time.monotonic()
    try:
        server.start()
        await fleet.start()
        while sum(not is_late(each) for each in found) < rounds:
            spent, number = time.monotonic() - begun, len(found)
            if found and spent + spent / number > BUDGET_S:
                break
            made, at = sequence(number + 1), number % len(arms)
            found.append({})
            for routers in arms[at:] + arms[:at]:
                found[-1][routers] = await one_arm(fleet, made, routers, server.url)
    finally:
        await fleet.stop()
        server.close()
    return found


def processes(bench: Bench) -> None:
    """The bars of the processes."""
    arms = [1, *LIMITS, APART] if bench.args.apart else [1, *LIMITS]
    found = asyncio.run(played(arms, LEAST_ROUNDS if bench.args.quick else ROUNDS))
    kept = [each for each in found if not is_late(each)]
    for each in found:
        told = ", ".join(f"{arm}: {ran.ttft:.3f} lag {ran.lag:.4f}" for arm, ran in each.items())
        print(f"# round{' (late)' if is_late(each) else ''}: {told}", flush=True)
    bench.tell("processes, rounds", len(found), "")
    bench.tell("processes, rounds that count", len(kept), "")
    if kept:
        bench.tell("processes, mean TTFT of one router", mean(each[1].ttft for each in kept), "s")
    for routers in arms[1:]:
        name = f"processes, {routers} routers" if routers > 0 else f"processes, {-routers} apart"
        if len(kept) < LEAST_ROUNDS:
            why = f"{len(found) - len(kept)} of {len(found)} rounds were late"
            bench.bar(name, None, "x", LIMITS.get(routers, 9.0), scaled=False, why_void=why)
            continue
        many, one = [each[routers] for each in kept], [each[1] for each in kept]
        inside = paired([each.inside for each in many], [each.inside for each in one])
        found_x = paired([each.ttft for each in many], [each.ttft for each in one])
        assert inside is not None and found_x is not None, "times are above 0"
        assert found_x.low is not None and found_x.high is not None, "of three rounds and more"
        bench.tell(f"{name}, in the engines alone", inside.ratio, "x")
        if routers == APART:
            bench.tell(name, found_x.ratio, "x")
            continue
        limit, why = LIMITS[routers], ""
        if found_x.low <= limit < found_x.ratio:
            why = f"95 % from {found_x.low:.3f} to {found_x.high:.3f}"
        ratios = [more.ttft / less.ttft for more, less in zip(many, one, strict=True)]
        bench.bar(name, found_x.ratio, "x", limit, samples=ratios, scaled=False, why_void=why)
        bench.tell(f"{name}, 95 % from", found_x.low, "x")
        bench.tell(f"{name}, 95 % to", found_x.high, "x")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=["lab", "processes"], help="one of the two halves")
    parser.add_argument("--apart", action="store_true", help="two processes without messages, too")


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("routers", __doc__.splitlines()[0], argv, add_arguments)
    logging.getLogger("warmlane").setLevel(logging.ERROR)  # of modelled replicas
    if bench.args.only != "processes":
        lab(bench, find_traces(os.environ, Path(__file__).resolve()))
    if bench.args.only != "lab":
        try:
            processes(bench)
        except Skipped as reason:
            for routers, limit in LIMITS.items():
                name = f"processes, {routers} routers"
                bench.bar(name, None, "x", limit, why_void=str(reason))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
