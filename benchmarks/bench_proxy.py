"""How much CPU does the proxy take for a request, next to other proxies on the same machine?

The routers run one at a time in front of the same two instant replicas, 64 keep-alive connections,
unique chat bodies of 4 KB and 64 KB; what counts is answers per CPU-second of the router's
processes (from the scheduler's account), not wall time: the machine is shared. warmlane does its
full work: parse, key, decide, count. Rounds are interleaved and a ratio is taken inside a round;
the bar is judged on the median. Any answer but a whole 200 ends the run.

Good: at 4 KB 6 times an aiohttp proxy, half of nginx, 4 times the better of the released routers;
at 64 KB 4 times aiohttp and 3 times the better router; 0.3 ms more to the first token.

    make bench, or: PYTHONPATH=. python -m benchmarks.bench_proxy [--quick] [--save]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.bars import Bench
from benchmarks.peers.contenders import (
    CONTENDERS,
    Contender,
    Unavailable,
    backends,
    wait_ready,
)
from benchmarks.peers.load import Bodies, Load, first_token_times

CONNECTIONS = 64
SIZES = {"4k": 4096, "64k": 65536}
ROUTERS = ("sglang-router", "vllm-router")
WARM_S = 0.4
# (size, against, bar, stretch)
BARS = [
    ("4k", "aiohttp", 6.0, 8.0),
    ("4k", "nginx", 0.5, 0.75),
    ("4k", "better-router", 4.0, 6.0),
    ("64k", "aiohttp", 4.0, None),
    ("64k", "better-router", 3.0, None),
]
ADDED_TTFT_MS = 0.3


async def requests_per_cpu_s(contender: Contender, bodies: Bodies, seconds: float) -> float:
    """One cell: answers per CPU-second of the contender under load."""
    load = Load(contender.port, CONNECTIONS, bodies)
    await load.start()
    await load.run_for(WARM_S)
    answered, cpu_s = load.answered, contender.cpu_s()
    await load.run_for(seconds)
    answered, cpu_s = load.answered - answered, contender.cpu_s() - cpu_s
    await load.stop()
    if contender.process.poll() is not None:
        raise RuntimeError(f"{contender.name} ended with {contender.process.returncode}")
    return answered / cpu_s


class Tournament:
    """The cells of all rounds: requests per CPU-second by contender and size."""

    def __init__(self, contenders: list[Contender], missing: dict[str, str]) -> None:
        self.contenders = contenders
        self.missing = missing
        self.rates: dict[tuple[str, str], list[float]] = {}

    async def play(self, rounds: int, seconds: float) -> None:
        bodies = {size: Bodies(length) for size, length in SIZES.items()}
        for number in range(rounds):
            shift = number % len(self.contenders)
            for size in SIZES:
                for contender in self.contenders[shift:] + self.contenders[:shift]:
                    rate = await requests_per_cpu_s(contender, bodies[size], seconds)
                    self.rates.setdefault((contender.name, size), []).append(rate)

    def median(self, name: str, size: str) -> float:
        return statistics.median(self.rates[name, size])

    def rival(self, against: str, size: str) -> tuple[str, str]:
        """Name of the contender behind a bar, and why there is none."""
        if against != "better-router":
            return against, self.missing.get(against, "")
        here = [name for name in ROUTERS if name not in self.missing]
        if not here:
            return "", "; ".join(self.missing[name] for name in ROUTERS)
        return max(here, key=lambda name: self.median(name, size)), ""

    def ratios(self, against: str, size: str) -> list[float]:
        """warmlane over the rival, round by round."""
        mine, other = self.rates["warmlane", size], self.rates[against, size]
        return [a / b for a, b in zip(mine, other, strict=True)]


async def added_ttft_ms(
    direct: int, through: dict[str, int], rounds: int
) -> dict[str, list[float]]:
    """Difference of the medians to the first event, milliseconds, five times over."""
    added: dict[str, list[float]] = {name: [] for name in through}
    bodies = Bodies(4096, stream=True)
    for _ in range(5):
        times = await first_token_times([direct, *through.values()], bodies, rounds)
        base = statistics.median(times[direct])
        for name, port in through.items():
            added[name].append((statistics.median(times[port]) - base) * 1e3)
    return added


def start_all(
    names: list[str], urls: list[str], work: Path, stack: contextlib.ExitStack
) -> tuple[list[Contender], dict[str, str]]:
    """Start each contender that can run here; the reasons for the others."""
    running: list[Contender] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            contender = CONTENDERS[name](urls, work)
            stack.callback(contender.stop)
            wait_ready(contender)
        except Unavailable as reason:
            if name == "warmlane":
                raise
            missing[name] = " ".join(str(reason).split())[:200]
            print(f"# {name} does not take part: {missing[name]}", flush=True)
        else:
            running.append(contender)
    return running, missing


def judge(bench: Bench, cells: Tournament) -> None:
    for (name, size), rates in sorted(cells.rates.items(), key=lambda item: item[0][::-1]):
        bench.tell(f"{name}_{size}", statistics.median(rates), "requests/cpu-s")
    for contender in cells.contenders:
        version = f"{contender.name} {contender.version}".strip()
        bench.tell(f"{version} peak memory", contender.peak_mib(), "MiB")
    for size, against, limit, stretch in BARS:
        rival, why_void = cells.rival(against, size)
        samples = cells.ratios(rival, size) if not why_void else []
        name = f"proxy_{size}_vs_{against}"
        bench.bar(name, None, "x", limit, "more", samples, scaled=False, why_void=why_void)
        if samples and stretch and statistics.median(samples) >= stretch:
            bench.tell(f"{name} reaches the stretch goal of", stretch, "x")


async def compete(bench: Bench) -> None:
    quick = bench.args.quick
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        urls = stack.enter_context(backends(2, work))
        names = [name for name in CONTENDERS if name not in bench.args.without]
        running, missing = start_all(names, urls, work, stack)
        missing |= dict.fromkeys(bench.args.without, "left out by --without")
        cells = Tournament(running, missing)
        started = time.monotonic()
        await cells.play(rounds=3 if quick else 7, seconds=1.0 if quick else 1.5)
        judge(bench, cells)
        direct = int(urls[0].rpartition(":")[2])
        ports = {contender.name: contender.port for contender in running}
        added = await added_ttft_ms(direct, ports, rounds=100 if quick else 200)
        for name, samples in added.items():
            bench.tell(f"{name}_added_ttft_p50", statistics.median(samples), "ms")
        bench.bar(
            "proxy_added_ttft_p50",
            None,
            "ms",
            ADDED_TTFT_MS,
            "less",
            added["warmlane"],
            scaled=False,
        )
        bench.tell("duration", time.monotonic() - started, "s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--without", action="append", default=[], choices=[n for n in CONTENDERS if n != "warmlane"]
    )


def main() -> int:
    question = "answers per CPU-second of the router, 64 connections, beside other proxies"
    bench = Bench("proxy", question, add_arguments=add_arguments)
    uvloop.run(compete(bench))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
