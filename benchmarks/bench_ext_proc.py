"""How much CPU does the endpoint picker take for a decision, next to a grpc.aio handler?

A real Envoy (full duplex, the gateway API's mode) sends unique chat bodies to each picker in turn:
warmlane with the native and with the grpcio transport, doing its full work, and a grpc.aio handler
that returns fixed bytes in the same mode, on asyncio's own loop as its documentation runs it (the
bars) and on uvloop (told beside them). What counts is requests per CPU-second of the picker's
process; contenders take turns of half a second, a ratio is that of all turns of a round, and the
bar is judged on the median of the rounds. Any answer but a whole 200 ends the run. Then, without
Envoy: the time from a body's last byte to the answer at 1,000 decisions a second on one core (void
where the machine cannot keep that pace for the client itself), and the memory after a million
streams.

Good: native 12 times the handler at 4 KB and 3.5 times at 64 KB without the response phase, 8 and
2.5 times with it; grpcio 0.7 times; 99 of 100 answers within 2 ms; 2.5 ms of CPU for 400 KB.

    make bench, or: PYTHONPATH=. python -m benchmarks.bench_ext_proc [--quick] [--save]
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from benchmarks.bars import MAX_SPREAD, Bench, spread
from benchmarks.peers.contenders import Contender, Unavailable, backends
from benchmarks.peers.ext_proc_client import Question, connect
from benchmarks.peers.gateway import Lane, envoy, fixed, warmlane
from benchmarks.peers.load import Bodies, Load
from warmlane.envoy.transport_native import why_missing

CONNECTIONS = 32
SIZES = {"4k": 4096, "64k": 65536}
LONG = 400 * 1024
WARM_S, TURN_S = 0.3, 0.5
LEVELS = (0, 1)
TRANSPORTS = ("native", "grpcio")
# (transport, level, size, times the handler)
BARS = [
    ("native", 0, "4k", 12.0),
    ("native", 0, "64k", 3.5),
    ("native", 1, "4k", 8.0),
    ("native", 1, "64k", 2.5),
    ("grpcio", 0, "4k", 0.7),
    ("grpcio", 1, "4k", 0.7),
]
P99_MS, RATE = 2.0, 1000.0
LATE_MS = 1.0  # the client's own lateness, p99, from which on the machine is too busy to judge
LONG_CPU_MS = 2.5
GROWTH_MIB = 8.0
QUESTIONS = 2000  # distinct ones of the memory run: the index is full of them when it begins


class Tally:
    """Requests answered in a lane's turns of one round, and the CPU of its picker in them."""

    def __init__(self, lane: Lane, bodies: Bodies, connections: int = CONNECTIONS) -> None:
        self.lane = lane
        self.answered, self.cpu_s = 0, 0.0
        self._load = Load(lane.port, connections, bodies)

    async def start(self) -> None:
        await self._load.start(asking=False)
        await self._load.burst(WARM_S)

    async def turn(self, seconds: float) -> None:
        began = self.lane.picker.cpu_s()
        self.answered += await self._load.burst(seconds)
        self.cpu_s += self.lane.picker.cpu_s() - began
        if self.lane.picker.process.poll() is not None:
            raise RuntimeError(f"{self.lane.name}: {self.lane.picker.process.returncode}")

    async def rate(self) -> float:
        """The end of it: requests per CPU-second."""
        await self._load.stop()
        return self.answered / self.cpu_s


class Cells:
    """Requests per CPU-second by lane and size, round by round.

    A native picker needs some 15 us a request: in a second that is 5 % of a core, and what a busy
    machine does to one second is not what it does to the next. So the lanes of a level take turns
    of TURN_S in a round, in an order that changes, and a rate is that of all its turns.
    """

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = lanes
        self.rates: dict[tuple[str, str], list[float]] = {}

    async def play(self, rounds: int, turns: dict[str, int], budget_s: float) -> None:
        """At least `rounds`; more of them while a ratio is too unsteady to be judged and the time
        allows it. turns: of each lane in a round, by size."""
        bodies = {size: Bodies(length) for size, length in SIZES.items()}
        began = time.monotonic()
        number = 0
        while number < rounds or self.unsteady():
            if number >= rounds and (time.monotonic() - began) * (1 + 1 / number) > budget_s:
                break
            for size, count in turns.items():
                for level in LEVELS:
                    await self._round(level, size, bodies[size], count, number)
            number += 1

    async def _round(self, level: int, size: str, bodies: Bodies, turns: int, number: int) -> None:
        tallies = [Tally(lane, bodies) for lane in self.lanes if lane.level == level]
        for tally in tallies:
            await tally.start()
        for turn in range(turns):
            shift = (number + turn // 2) % len(tallies)
            order = tallies[shift:] + tallies[:shift]
            for tally in order if turn % 2 else order[::-1]:
                await tally.turn(TURN_S)
        for tally in tallies:
            self.rates.setdefault((tally.lane.name, size), []).append(await tally.rate())

    def unsteady(self) -> bool:
        names = {lane.name for lane in self.lanes}
        return any(
            spread(self.ratios(transport, level, size)) > MAX_SPREAD
            for transport, level, size, _ in BARS
            if f"{transport}-{level}" in names
        )

    def ratios(self, transport: str, level: int, size: str, loop: str = "asyncio") -> list[float]:
        mine, other = self.rates[f"{transport}-{level}", size], self.rates[f"{loop}-{level}", size]
        return [a / b for a, b in zip(mine, other, strict=True)]


def start_lanes(replicas: list[str], work: Path, stack: contextlib.ExitStack) -> list[Lane]:
    """Every picker before a listener of its own."""
    lanes = []
    transports = [name for name in TRANSPORTS if name == "grpcio" or not why_missing()]
    yardsticks = {loop: fixed(loop, replicas, work) for loop in ("asyncio", "uvloop")}
    for yardstick in yardsticks.values():
        stack.callback(yardstick.stop)
    for level in LEVELS:
        for transport in transports:
            picker = warmlane(transport, level, replicas, work)
            stack.callback(picker.stop)
            lanes.append(Lane(f"{transport}-{level}", level, picker))
        lanes += [Lane(f"{loop}-{level}", level, made) for loop, made in yardsticks.items()]
    stack.callback(envoy(lanes, work).stop)
    return lanes


def judge(bench: Bench, cells: Cells) -> None:
    for (name, size), rates in sorted(cells.rates.items(), key=lambda item: item[0][::-1]):
        bench.tell(f"{name}_{size}", statistics.median(rates), "requests/cpu-s")
        bench.tell(f"{name}_{size}_cpu", 1e6 / statistics.median(rates), "us/request")
    for transport, level, size, limit in BARS:
        name = f"ext_proc_{transport}_level{level}_{size}_vs_handler"
        void = why_missing() if transport == "native" else ""
        samples = [] if void else cells.ratios(transport, level, size)
        bench.bar(name, None, "x", limit, "more", samples, scaled=False, why_void=void)
        if samples:
            beside = cells.ratios(transport, level, size, "uvloop")
            bench.tell(f"{name}_on_uvloop", statistics.median(beside), "x")


async def long_prompts(bench: Bench, lane: Lane, rounds: int, seconds: float) -> None:
    bodies = Bodies(LONG)
    samples = []
    for _ in range(rounds):
        tally = Tally(lane, bodies, 8)
        await tally.start()
        await tally.turn(seconds)
        samples.append(1e3 / await tally.rate())
    bench.bar("ext_proc_400k_cpu", None, "ms/decision", LONG_CPU_MS, "less", samples)


def questions(size: int, count: int) -> list[Question]:
    bodies = itertools.islice(Bodies(size), count)
    return [Question(raw.partition(b"\r\n\r\n")[2]) for raw in bodies]


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


async def answers_in_time(bench: Bench, port: int, rounds: int, seconds: float) -> None:
    """The p99 bar, several times over; void where the client's own clock ticks late."""
    asked = questions(4096, QUESTIONS)
    gateway = await connect(port)
    await gateway.flood(asked, 2000, 8)
    p50: list[float] = []
    p99: list[float] = []
    lateness: list[float] = []
    for _ in range(rounds):
        times, late = await gateway.pace(asked, RATE, seconds)
        p50.append(quantile(times, 0.5) * 1e3)
        p99.append(quantile(times, 0.99) * 1e3)
        lateness.append(quantile(late, 0.99) * 1e3)
    gateway.close()
    bench.tell("ext_proc_p50_at_1000_a_second", statistics.median(p50), "ms")
    bench.tell("ext_proc_p99_best_round", min(p99), "ms")
    bench.tell("client_lateness_p99", statistics.median(lateness), "ms")
    # Only the rounds in which the client itself could keep the pace say something of the picker.
    judged = [value for value, late in zip(p99, lateness, strict=True) if late < LATE_MS]
    void = "" if judged else f"the client itself is {min(lateness):.1f} ms late: a busy machine"
    value = statistics.median(judged or p99)
    name = "ext_proc_p99_at_1000_a_second"
    bench.bar(name, value, "ms", P99_MS, "less", scaled=False, why_void=void)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def memory(bench: Bench, picker: Contender, count: int) -> None:
    """Resident memory of a fresh picker after `count` streams, against that after a tenth."""
    asked = questions(600, QUESTIONS)
    gateway = await connect(picker.port)
    started = time.monotonic()
    await gateway.flood(asked, count // 10, 64)
    before = resident_mib(picker.process.pid)
    await gateway.flood(asked, count - count // 10, 64)
    after = resident_mib(picker.process.pid)
    gateway.close()
    bench.tell("memory_run_streams", count, "streams")
    bench.tell("memory_run_seconds", time.monotonic() - started, "s")
    bench.tell("memory_run_resident", after, "MiB")
    bench.bar("ext_proc_growth", after - before, "MiB", GROWTH_MIB, "less", scaled=False)


async def compete(bench: Bench) -> None:
    quick = bench.args.quick
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        replicas = stack.enter_context(backends(2, work))
        lanes = start_lanes(replicas, work, stack)
        cells = Cells(lanes)
        if quick:
            await cells.play(rounds=3, turns={"4k": 2, "64k": 1}, budget_s=0.0)
        else:
            await cells.play(rounds=6, turns={"4k": 8, "64k": 3}, budget_s=400.0)
        judge(bench, cells)
        if why_missing():
            return
        by_name = {lane.name: lane for lane in lanes}
        await long_prompts(bench, by_name["native-0"], 3 if quick else 5, 1.0 if quick else 1.5)
        picker = by_name["native-0"].picker
        os.sched_setaffinity(picker.process.pid, {max(os.sched_getaffinity(0))})
        await answers_in_time(bench, picker.port, 3 if quick else 7, 2.0 if quick else 4.0)
        fresh = warmlane("native", 0, replicas, work)
        stack.callback(fresh.stop)
        await memory(bench, fresh, 50_000 if quick else 1_000_000)
        for name in ("native-0", "native-1", "grpcio-0"):
            bench.tell(f"{name} peak memory", by_name[name].picker.peak_mib(), "MiB")


def main() -> int:
    question = "requests per CPU-second of the picker behind a real Envoy, beside grpc.aio"
    bench = Bench("ext_proc", question)
    try:
        uvloop.run(compete(bench))
    except Unavailable as reason:
        print(f"# {reason}")
        for transport, level, size, limit in BARS:
            name = f"ext_proc_{transport}_level{level}_{size}_vs_handler"
            bench.bar(name, None, "x", limit, "more", scaled=False, why_void="no Envoy here")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
