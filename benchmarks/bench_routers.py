"""Do several routers that hear each other place requests as well as one? Mean TTFT over one's.

    PYTHONPATH=. python -m benchmarks.bench_routers [--quick] [--save] [--only lab|processes]

- Lab: WORKLOADS x views x seeds, 8 modelled replicas; 1, 2 and 4 routers, each request through one
  of them by chance, messages every 50 ms. Good: 2 routers <= 1.05, 4 <= 1.10, as the geometric mean
  of the seeds' ratios in each cell. Told beside: the same without messages (docs/share.md).
- Processes: `warmlane fake-engine`s, 1, 2 and 4 `warmlane serve` and a real Valkey (a wheel, see
  tests/share_server.py), requests to the routers in turn; rounds one after the other, the same bars
  on the median of the rounds' ratios. Void when the loop of the load generator was late by more
  than 5 % of the median TTFT, or the rounds spread more than 25 %.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import lru_cache
from math import exp, log
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from _pytest.outcomes import Skipped

from benchmarks.bars import Bench
from tests.share_server import Server
from warmlane.router.config import PoolConfig
from warmlane.router.sim.client import Client
from warmlane.router.sim.demo_fleet import Replicas, RouterProcess, read_metrics
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.player import LagMeter, Play, play
from warmlane.router.sim.replay import fleet_of
from warmlane.router.sim.replay_workloads import workload
from warmlane.router.sim.traces import Workload, find_traces
from warmlane.router.sim.workload import cut, generate

LIMITS = {2: 1.05, 4: 1.10}
QWEN, LLAMA = "qwen3-32b/2xh100", "llama-3.1-8b/h100"
SHARE_S = 0.05
MAX_LAG = 0.05
# Of the processes: the replicas run at a fifth of their speed and prompts are long for them, so
# that two cores carry nine processes and a first token takes long against the loop's lateness.
REPLICAS, ROUNDS = 4, 3
HOW = Play(model="fake", speed=0.2, shrink=16.0, output_shrink=64.0, rate=60.0, think_cap_s=0.1)
ENGINE = ("--scale", "16", "--tick-ms", "2", "--gpu", QWEN)


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


async def one_round(fleet: Replicas, made: Workload, routers: int, url: str) -> tuple[float, float]:
    """Mean TTFT and the generator's lag (99th percentile), seconds of the replicas."""
    await fleet.reset()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        config = folder / "share.yaml"
        config.write_text(f"share: {{url: '{url}'}}\n" if routers > 1 else "{}\n")
        options = ["--config", str(config)]
        started = [RouterProcess(fleet.urls, "default", options=options) for _ in range(routers)]
        for router in started:
            stack.push_async_callback(router.stop)
            await router.start()
        await heard(started, routers - 1)
        meter = LagMeter()
        meter.start()
        try:
            results = await play(made, [router.url for router in started], HOW)
        finally:
            _, lag_s = await meter.stop()
    wrong = [result.error for result in results if result.error]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(results)} requests failed: {wrong[0]}")
    return sum(result.ttft_s for result in results) / len(results), lag_s * HOW.speed


async def heard(started: Sequence[RouterProcess], peers: int) -> None:
    """Wait until every router hears all others."""
    for router in started if peers else ():
        client = Client(router.admin_url)
        for _ in range(400):
            page = read_metrics((await client.get("/metrics")).body.decode())
            if page.get("warmlane_share_peers") == peers:
                break
            await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"{router.url} does not hear {peers} others")
        await client.close()


async def processes(bench: Bench) -> None:
    """Rounds of 1, 2 and 4 routers in turn before the same replicas."""
    made = cut(generate("agent", 12 if bench.args.quick else 24, seed=1), turns=6)
    server = Server("valkey")
    fleet = Replicas(REPLICAS, ["--model", HOW.model, "--speed", f"{HOW.speed:g}", *ENGINE])
    found: dict[int, list[float]] = {1: [], 2: [], 4: []}
    lags: list[float] = []
    try:
        server.start()
        await fleet.start()
        for _ in range(2 if bench.args.quick else ROUNDS):
            for routers, values in found.items():
                value, lag_s = await one_round(fleet, made, routers, server.url)
                values.append(value)
                lags.append(lag_s)
    finally:
        await fleet.stop()
        server.close()
    least = statistics.median(found[1])
    late = statistics.median(lags) > MAX_LAG * least
    bench.tell("processes, mean TTFT of one router", least, "s")
    bench.tell("processes, lag of the load generator", statistics.median(lags), "s")
    for routers, limit in LIMITS.items():
        ratios = [a / b for a, b in zip(found[routers], found[1], strict=True)]
        why = "the load generator was late" if late else ""
        name = f"processes, {routers} routers"
        bench.bar(name, None, "x", limit, samples=ratios, scaled=False, why_void=why)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=["lab", "processes"], help="one of the two halves")


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("routers", __doc__.splitlines()[0], argv, add_arguments)
    logging.getLogger("warmlane").setLevel(logging.ERROR)  # of modelled replicas
    if bench.args.only != "processes":
        lab(bench, find_traces(os.environ, Path(__file__).resolve()))
    if bench.args.only != "lab":
        try:
            asyncio.run(processes(bench))
        except Skipped as reason:
            for routers, limit in LIMITS.items():
                name = f"processes, {routers} routers"
                bench.bar(name, None, "x", limit, why_void=str(reason))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
