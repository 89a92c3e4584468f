"""Question: what do engine events cost from the socket to the tree?

Run: python -m benchmarks.bench_events_wire [--quick] [--save]. Good: every bar ok. Publishers are
processes of their own with real ZMQ sockets; frames as in `bench_events`. CPU time of the whole
process that listens, all of its threads.

Contenders, in turns: pyzmq as it comes (blocking, no event loop, its own thread), a typed msgspec
decoder and the very same apply; and the intake of ai-dynamo-runtime, its indexer service with one
and with four threads, which must find the last chain afterwards.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median

import uvloop
import zmq

from benchmarks.bars import MAX_SPREAD, Bench, spread
from benchmarks.bench_events import apply_typed, intake, typed
from benchmarks.peers.contenders import Unavailable, package_venv
from benchmarks.peers.event_load import (
    EVENTS,
    SIZE,
    STEPS_A_S,
    BlockStored,
    frames,
    free_ports,
    publisher,
)
from warmlane._core.kv_events import keep_freed_memory
from warmlane.router.config import PoolConfig
from warmlane.router.config_events import Endpoints
from warmlane.router.exact import ExactView
from warmlane.router.feeds.kv_events_sockets import Pump, Source
from warmlane.router.pool import Pool
from warmlane.router.types import ReplicaSpec

PEER = "ai-dynamo-runtime"
HEARD_S = 60.0
Go = Callable[[], None]


class TimedPump(Pump):
    """Keeps the longest turn of one source, in seconds of CPU."""

    longest = 0.0

    def turn(self, source: Source, end: float) -> None:
        began = time.thread_time()
        super().turn(source, end)
        self.longest = max(self.longest, time.thread_time() - began)


def opened(ports: list[int], pump: Pump) -> list[Source]:
    """One source for each port, as the running router has them."""
    pool = Pool(PoolConfig(kv_events="auto"))
    exact = ExactView(pool, len(ports))
    made = []
    for port in ports:
        slot = pool.add(ReplicaSpec(url=f"http://r{port}:1"), 0.0)
        exact.open(slot)
        where = Endpoints(f"tcp://127.0.0.1:{port}")
        made.append(
            Source(
                where,
                bind=False,
                exact=exact,
                slot=slot,
                pump=pump,
                clock=time.monotonic,
            )
        )
    return made


async def another(lags: list[float]) -> None:
    """What a request waits for: CPU seconds between two turns of somebody else on this loop."""
    last = time.thread_time()
    while True:
        await asyncio.sleep(0)
        now = time.thread_time()
        lags.append(now - last)
        last = now


async def hear(
    ports: list[int], wanted: int, go: Go, lags: list[float] | None = None
) -> tuple[float, float]:
    """CPU seconds of the process for `wanted` batches, and of the longest turn on the loop."""
    keep_freed_memory()
    pump = TimedPump(asyncio.get_running_loop())
    sources = opened(ports, pump)
    await asyncio.sleep(1.5)  # connections and subscriptions
    waits = asyncio.create_task(another(lags)) if lags is not None else None
    pump.longest, end = 0.0, time.monotonic() + HEARD_S
    began = time.process_time()
    go()
    while sum(each.stream.counts["batches"] for each in sources) < wanted:
        assert time.monotonic() < end, [each.stream.counts for each in sources[:3]]
        await asyncio.sleep(0.02)
    spent = time.process_time() - began
    if waits is not None:
        waits.cancel()
    assert all(each.stream.counts["gap"] == 0 for each in sources)
    for each in sources:
        each.close()
    return spent, pump.longest


def hear_typed(ports: list[int], wanted: int, go: Go) -> float:
    """The contender: pyzmq as it comes, a typed decoder, the same apply."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.connect(f"tcp://127.0.0.1:{ports[0]}")
    time.sleep(1.0)
    made = intake()
    began = time.process_time()
    go()
    for _ in range(wanted):
        apply_typed(made, [socket.recv_multipart()[2]])
    spent = time.process_time() - began
    context.destroy(linger=0)
    return spent


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far, all of its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def last_chain() -> list[int]:
    """Tokens of the last whole chain of the load."""
    chain: list[int] = []
    for payload in frames(8, 10_240)[-8:]:
        for event in typed.decode(payload).events:
            assert isinstance(event, BlockStored)
            chain = [*([] if event.parent_block_hash is None else chain), *event.token_ids]
    return chain


def hear_peer(python: Path, threads: int, ports: list[int], go: Go) -> float:
    """The peer's indexer; Unavailable when it does not find what was published."""
    port = free_ports(1)[0]
    command = [str(python), "-m", "dynamo.indexer", "--block-size", str(SIZE), "--port", str(port)]
    command += ["--threads", str(threads), "--workers", f"0=tcp://127.0.0.1:{ports[0]}"]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **quiet) as peer:
        try:
            time.sleep(3.0)  # it listens and subscribes
            began, end = cpu_of(peer.pid), time.monotonic() + HEARD_S
            go()
            time.sleep(1.5)
            spent = last = 0.0
            while not last or spent > last:  # until it rests
                last, spent = spent, cpu_of(peer.pid) - began
                time.sleep(0.7)
                assert time.monotonic() < end, "it never rests"
            chain = last_chain()
            body = json.dumps({"model_name": "default", "token_ids": chain}).encode()
            ask = urllib.request.Request(
                f"http://127.0.0.1:{port}/query", body, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(ask, timeout=10) as answer:
                found = json.load(answer)["scores"].get("0", {}).get("0", 0)
            if found != len(chain):
                raise Unavailable(f"it finds {found} of {len(chain)} tokens")
            return spent
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise Unavailable(str(error)) from error
        finally:
            peer.kill()


def over_sockets(bench: Bench, rounds: int) -> None:
    """All with their sockets: 8 blocks an event, 4 events a message, one publisher in a flood."""
    messages = 10_000
    blocks = messages * EVENTS * 8
    for _ in range(3):  # a noisy minute is measured again
        ours, theirs = [], []
        for _ in range(rounds):
            with publisher("chains", messages, 1) as (ports, go):
                ours.append(uvloop.run(hear(ports, messages, go))[0] / blocks * 1e9)
            with publisher("chains", messages, 1) as (ports, go):
                theirs.append(hear_typed(ports, messages, go) / blocks * 1e9)
        ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
        if max(spread(ratios), spread(ours)) <= MAX_SPREAD:
            break
    bench.bar("events_8_with_socket_a_block", None, "ns", 300, samples=ours)
    bench.tell("events_8_with_socket_typed_a_block", median(theirs), "ns")
    bench.bar("events_8_with_socket_ratio", None, "x", 3.0, "more", samples=ratios, scaled=False)
    peer(bench, messages, blocks, median(ours))


def peer(bench: Bench, messages: int, blocks: int, ours: float) -> None:
    best, why = 0.0, ""
    try:
        python = package_venv(PEER)
        for threads in (1, 4):
            samples = []
            for _ in range(3):
                with publisher("chains", messages, 1) as (ports, go):
                    samples.append(hear_peer(python, threads, ports, go) / blocks * 1e9)
            bench.tell(f"{PEER}_{threads}_threads_a_block", median(samples), "ns")
            best = min(best or median(samples), median(samples))
    except Unavailable as error:
        why = f"peer: {error}"
    value = best / ours if best else None
    bench.bar("events_ratio_to_dynamo", value, "x", 3, "more", scaled=False, why_void=why)


def paced(bench: Bench, rounds: int) -> None:
    """One block a message, 500 messages a second: each wakes its listener, as in decoding."""
    messages, ratios, ours = 1_000, [], []
    for _ in range(rounds):
        with publisher("decode", messages, 1, 500.0) as (ports, go):
            mine = uvloop.run(hear(ports, messages, go))[0]
        with publisher("decode", messages, 1, 500.0) as (ports, go):
            theirs = hear_typed(ports, messages, go)
        ours.append(mine / messages * 1e6)
        ratios.append(theirs / mine)
    bench.tell("events_paced_a_message", median(ours), "us")
    bench.tell("events_paced_ratio", median(ratios), "x")


def fleet(bench: Bench, rounds: int, sources: int, seconds: int) -> None:
    """So many engines that prefill 20,000 tokens a second each, all at once and in a flood."""
    shares: list[float] = []
    turns, passes, messages = [], [], STEPS_A_S * seconds
    for _ in range(2 * rounds):
        if len(shares) >= rounds and spread(shares[-rounds:]) <= MAX_SPREAD:
            break
        with publisher("prefill", messages, sources) as (ports, go):
            spent, longest = uvloop.run(hear(ports, sources * messages, go))
        shares.append(spent / seconds * 100)
        turns.append(longest * 1000)
        with publisher("prefill", messages, sources) as (ports, go):
            lags: list[float] = []
            uvloop.run(hear(ports, sources * messages, go, lags))
        passes.append(max(lags) * 1000)
    bench.bar(
        f"events_{sources}_sources_20000_tokens_s", None, "% core", 10, samples=shares[-rounds:]
    )
    # A delay of the intake shows in every round, one of the machine in some.
    bench.bar("events_longest_turn", min(turns), "ms", 2)
    bench.tell("events_longest_turn_worst", max(turns), "ms")
    bench.bar("events_flood_delays_a_request", min(passes), "ms", 2)
    bench.tell("events_flood_delays_a_request_worst", max(passes), "ms")


def main() -> int:
    logging.disable(logging.CRITICAL)  # sources without a replay socket say so
    bench = Bench("events_wire", (__doc__ or "").partition("\n")[0].removeprefix("Question: "))
    over_sockets(bench, 4 if bench.args.quick else 5)
    paced(bench, 2 if bench.args.quick else 3)
    fleet(bench, 2 if bench.args.quick else 4, 100, 4)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
