"""Does the native transport stay whole and small over hours of good, rude and broken clients?

Starts `warmlane ext-proc --transport native` before two instant replicas and plays at once:
gateways that ask and end with RST_STREAM as Envoy does, streams abandoned in the middle of a body,
gateways that do not read for a while, large bodies, connections cut at any point, and bytes that
are not HTTP/2 or damaged frames. Every question of a good gateway must be answered with a replica.
At the end no stream and no ticket is open, and resident memory has not grown since the first fifth
of the run. With --share the clients rest whenever they and the picker together have used more than
that share of one core, so that an hour of it disturbs nobody.

    PYTHONPATH=. python -m benchmarks.soak_ext_proc [--seconds 3600] [--share 0.15] [--save]

Prints one line a minute; exit status 1 and the reason when something is wrong. Good: flat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import struct
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import uvloop

from benchmarks.bars import machine
from benchmarks.bench_ext_proc import questions, resident_mib
from benchmarks.peers.contenders import Contender, backends
from benchmarks.peers.ext_proc_client import RST_STREAM, Gateway, Question, connect
from benchmarks.peers.gateway import warmlane

RESULTS = Path(__file__).resolve().parent / "results" / "soak_ext_proc.json"
GROWTH_MIB = 16.0
SETTLE_S = 15.0
CANCEL = struct.pack(">I", 8)
OPEN = ("warmlane_open_tickets", "warmlane_ext_proc_buffered_bytes")


class SoakError(Exception):
    """Something is not as it must be."""


class Governor:
    """Keeps this process and the picker below a share of one core, 0 for no bound."""

    def __init__(self, pid: int, share: float) -> None:
        self._share = share
        self._stats = Path(f"/proc/{pid}/stat")
        self._start = time.monotonic()
        self._used = self._cpu_s()

    def _cpu_s(self) -> float:
        fields = self._stats.read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])  # utime, stime: proc(5)
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")

    async def rest(self) -> None:
        """Return as soon as there is something left to use."""
        while self._share:
            allowed = self._share * (time.monotonic() - self._start)
            if self._cpu_s() - self._used <= allowed:
                return
            await asyncio.sleep(0.25)


class Play:
    """The clients, until `stop` is set; counts by what they did."""

    def __init__(self, port: int, seed: int, governor: Governor) -> None:
        self.port = port
        self.rest = governor.rest
        self.rng = random.Random(seed)
        self.stop = asyncio.Event()
        self.did: dict[str, int] = {}
        self.small = questions(600, 1000)
        self.large = questions(300_000, 8)

    def count(self, what: str, number: int = 1) -> None:
        self.did[what] = self.did.get(what, 0) + number

    async def good(self) -> None:
        """Asks without a pause and is always answered; a new connection now and then."""
        while not self.stop.is_set():
            await self.rest()
            gateway = await connect(self.port)
            for _ in range(self.rng.randrange(5, 100)):
                if self.stop.is_set():
                    break
                many = self.rng.randrange(1, 64)
                await gateway.flood(self.small, many, many)
                self.count("answered", many)
                self.abandon(gateway)
                if self.rng.random() < 0.05:
                    await gateway.flood(self.large, 4, 2)
                    self.count("answered_large", 4)
                await self.rest()
                await asyncio.sleep(0)
            gateway.close()

    def abandon(self, gateway: Gateway) -> None:
        """A stream that is reset at a point of chance, as when a client of Envoy's leaves."""
        for _ in range(self.rng.randrange(4)):
            data = self.rng.choice(self.small).frames(gateway.number())
            stream = data[5:9]
            cut = self.rng.choice(list(frame_ends(data)))
            reset = b"\0\0\4" + bytes([RST_STREAM, 0]) + stream + CANCEL
            gateway.transport.write(data[:cut] + reset)
            self.count("abandoned")

    async def late_reader(self) -> None:
        """Asks much and reads nothing for a while; then everything is there."""
        while not self.stop.is_set():
            await self.rest()
            gateway = await connect(self.port)
            gateway.transport.pause_reading()
            asked: list[Question] = [self.rng.choice(self.large) for _ in range(12)]
            for question in asked:
                gateway.ask(question)
            await asyncio.sleep(self.rng.random() * 2)
            gateway.transport.resume_reading()
            await gateway.settled()
            self.count("answered_late", len(asked))
            gateway.close()

    async def leaver(self) -> None:
        """Goes in the middle of everything."""
        while not self.stop.is_set():
            await self.rest()
            gateway = await connect(self.port)
            for _ in range(self.rng.randrange(1, 40)):
                gateway.ask(self.rng.choice(self.small))
            await asyncio.sleep(self.rng.random() * 0.02)
            gateway.close()
            self.count("left")
            await asyncio.sleep(0.05)

    async def vandal(self) -> None:
        """Damaged frames and noise."""
        while not self.stop.is_set():
            await self.rest()
            data = bytearray(Gateway.PREFACE)
            for number in range(1, 20, 2):
                data += self.rng.choice(self.small).frames(number)
            for _ in range(self.rng.randrange(1, 20)):
                data[self.rng.randrange(len(data))] = self.rng.randrange(256)
            if self.rng.random() < 0.2:
                data = bytearray(self.rng.randbytes(2000))
            with contextlib.suppress(OSError):  # the picker may well hang up on this one
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(data)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(), 0.1)
                writer.transport.abort()
            self.count("vandalised")
            await asyncio.sleep(0.02)

    def tasks(self) -> list[asyncio.Task[None]]:
        players = [self.good, self.good, self.late_reader, self.leaver, self.vandal]
        return [asyncio.create_task(play()) for play in players]


def frame_ends(data: bytes) -> itertools.chain[int]:
    """Where frames of `data` end."""
    ends, at = [], 0
    while at < len(data):
        at += 9 + int.from_bytes(data[at : at + 3], "big")
        ends.append(at)
    return itertools.chain(ends)


def metrics(port: int) -> dict[str, float]:
    """The picker's own samples, labels dropped and summed."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
    return found


async def settled(port: int) -> None:
    """Nothing is open any more. Level 0 predicts the ends, so it takes a moment."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        seen = await asyncio.to_thread(metrics, port)
        left = {name: seen[name] for name in OPEN if seen.get(name)}
        if not left:
            return
        if time.monotonic() > deadline:
            raise SoakError(f"still open at the end: {left}")
        await asyncio.sleep(0.2)


async def watch(
    play: Play, running: list[asyncio.Task[None]], picker: Contender, seconds: float
) -> list[float]:
    """Resident MiB, sampled a hundred times over the run; a player that fails ends it."""
    samples: list[float] = []
    start = said = time.monotonic()
    for number in range(1, 101):
        due = start + seconds * number / 100 - time.monotonic()
        done, _ = await asyncio.wait(
            running, timeout=max(due, 0), return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()
        if picker.process.poll() is not None:
            said_last = picker.log.read_text(errors="replace")[-2000:]
            raise SoakError(f"the picker ended with {picker.process.returncode}: {said_last}")
        samples.append(resident_mib(picker.process.pid))
        if time.monotonic() - said > 60 or number == 100:
            said = time.monotonic()
            print(f"# {said - start:.0f} s, {samples[-1]:.1f} MiB, {play.did}", flush=True)
    return samples


async def soak(seconds: float, seed: int, share: float) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        replicas = stack.enter_context(backends(2, Path(folder)))
        picker = warmlane("native", 1, replicas, Path(folder))
        stack.callback(picker.stop)
        play = Play(picker.port, seed, Governor(picker.process.pid, share))
        running = play.tasks()
        samples = await watch(play, running, picker, seconds)
        play.stop.set()
        await asyncio.wait_for(asyncio.gather(*running), 60)
        await settled(picker.metrics_port)
        # The median of the fifths: one sample may catch a burst of large bodies.
        first, last = (sorted(part)[10] for part in (samples[15:35], samples[80:]))
        crashes = picker.log.read_text(errors="replace").count("Traceback")
        if crashes:
            raise SoakError(f"{crashes} exceptions in the picker's log")
        if last - first > GROWTH_MIB:
            raise SoakError(f"grew from {first:.1f} to {last:.1f} MiB")
        return {
            "seconds": seconds,
            "share_of_a_core": share,
            "did": play.did,
            "resident_mib": {"after_a_fifth": first, "end": last, "peak": picker.peak_mib()},
            "cpu_s": picker.cpu_s(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.0, help="of one core; 0: no bound")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    try:
        report = uvloop.run(soak(options.seconds, options.seed, options.share))
    except SoakError as reason:
        print(f"soak_ext_proc: {reason}")
        return 1
    if options.save:
        RESULTS.write_text(json.dumps({"machine": machine(), **report}, indent=1) + "\n")
    print(f"soak_ext_proc: whole and flat: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
