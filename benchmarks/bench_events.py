"""Question: what do engine events cost to hear, decode, apply and keep?

Run: python -m benchmarks.bench_events [--quick] [--save]. Good: every bar ok. Frames are vLLM's map
form, four events each, blocks of 16 token ids below 128,000. CPU time: of this thread for decode
and apply, of the whole process (ZMQ's own thread included) where sockets are in it; publishers are
processes of their own.

The contender is what a router without a compiled intake does: pyzmq, a typed msgspec decoder, and
then the very same apply, given the decoded lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import msgspec
import zmq

from benchmarks.bars import Bench, cpu_seconds
from warmlane._core.kv_events import Intake, keep_freed_memory
from warmlane._core.radix import RadixTree
from warmlane.router.config import PoolConfig
from warmlane.router.config_events import Endpoints
from warmlane.router.exact import ExactView
from warmlane.router.feeds.kv_events_sockets import Pump, Source
from warmlane.router.pool import Pool
from warmlane.router.types import ReplicaSpec

ODD = 0xD6E8_FEB8_6659_FD93  # steps of it look random and never meet
SIZE = 16  # tokens a block
EVENTS = 4  # a frame
Hash = int | bytes


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True):
    """As vLLM 0.32 declares it."""

    block_hashes: list[Hash]
    parent_block_hash: Hash | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[list[Any] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True):
    """As vLLM 0.32 declares it."""

    block_hashes: list[Hash]
    medium: str | None
    group_idx: int | None = None


class Batch(msgspec.Struct, array_like=True):
    """One message."""

    ts: float
    events: list[BlockStored | BlockRemoved]
    data_parallel_rank: int | None = None


encode = msgspec.msgpack.Encoder().encode
typed = msgspec.msgpack.Decoder(Batch)


def stored_event(rnd: random.Random, blocks: int, parent: int | None) -> BlockStored:
    hashes: list[Hash] = [rnd.getrandbits(64) for _ in range(blocks)]
    # Frequent ids are small: about half of them are one or three bytes on the wire.
    ids = [min(127_999, int(rnd.expovariate(1 / 30_000))) for _ in range(SIZE * blocks)]
    extra: list[list[Any] | None] = [None] * blocks
    return BlockStored(hashes, parent, ids, SIZE, None, "GPU", None, extra, 0, "full_attention")


def frames(blocks: int, total: int, seed: int = 1, chain: int = 64) -> list[bytes]:
    """Chains of `chain` blocks or more, `blocks` an event, until `total` blocks."""
    rnd, made = random.Random(seed), []
    parent, length = None, 0
    for _ in range(max(1, total // (blocks * EVENTS))):
        events = []
        for _ in range(EVENTS):
            event = stored_event(rnd, blocks, parent)
            length += blocks
            parent = None if length >= chain else int(event.block_hashes[-1])  # type: ignore[arg-type]
            length = 0 if parent is None else length
            events.append(event)
        made.append(encode(Batch(time.time(), list(events), 0)))
    return made


def intake() -> Intake:
    made = Intake(RadixTree(0, 8))
    made.open(0)
    return made


def apply_frames(made: Intake, payloads: list[bytes]) -> None:
    for payload in payloads:
        made.apply(0, payload)


def apply_typed(made: Intake, payloads: list[bytes]) -> None:
    for payload in payloads:
        for event in typed.decode(payload).events:
            if isinstance(event, BlockStored):
                made.stored(0, event.block_hashes, event.parent_block_hash, event.token_ids, SIZE)
            else:
                made.removed(0, event.block_hashes)


def decode_and_apply(bench: Bench, rounds: int) -> None:
    """Both ways over the same frames, in turns; the first pass of each round warms up."""
    for blocks in (1, 8, 64):
        payloads = frames(blocks, 24_000)
        count = len(payloads) * EVENTS * blocks
        ours, theirs = [], []
        for _ in range(rounds):
            for samples, run in ((ours, apply_frames), (theirs, apply_typed)):
                made = intake()
                run(made, payloads[: len(payloads) // 8])
                rest = payloads[len(payloads) // 8 :]
                spent = cpu_seconds(lambda made=made, rest=rest, run=run: run(made, rest))  # type: ignore[misc]
                samples.append(spent / (count * len(rest) / len(payloads)) * 1e9)
        name = f"events_{blocks}_a_block"
        if blocks == 8:
            bench.bar(name, None, "ns", 300, samples=ours)
            ratio = median(theirs) / median(ours)
            bench.bar("events_8_ratio_to_typed", ratio, "x", 3, "more", scaled=False)
        else:
            bench.tell(name, median(ours), "ns")
            bench.tell(f"events_{blocks}_ratio_to_typed", median(theirs) / median(ours), "x")
        bench.tell(f"events_{blocks}_typed_a_block", median(theirs), "ns")


def churn(bench: Bench, rounds: int) -> None:
    """A full cache: each stored block pushes another one out, told by an event of its own."""
    rnd, held = random.Random(2), []
    first = [stored_event(rnd, 8, None) for _ in range(3125)]
    held = [number for event in first for number in reversed(event.block_hashes)]
    made = intake()
    apply_frames(made, [encode(Batch(0.0, list(first[i : i + 4]), 0)) for i in range(0, 3125, 4)])
    samples = []
    for _ in range(rounds):
        payloads = []
        for _ in range(800):
            gone = [BlockRemoved([held.pop(0)], "GPU", 0) for _ in range(8)]
            event = stored_event(rnd, 8, None)
            held += reversed(event.block_hashes)
            payloads.append(encode(Batch(0.0, [*gone, event], 0)))
        spent = cpu_seconds(lambda payloads=payloads: apply_frames(made, payloads))  # type: ignore[misc]
        samples.append(spent / 6400 * 1e9)
    counted = made.stats(0)
    assert counted["unknown_removals"] == 0 and made.tree.replica_blocks(0) == 25_000
    bench.bar("events_store_and_evict_a_block", None, "ns", 700, samples=samples)


def memory(bench: Bench, replicas: int) -> None:
    """25,000 blocks a replica, all distinct, each with a hash function of its own."""
    blocks, per_event = 25_000, 500
    made = Intake(RadixTree(0, 512))
    for replica in range(replicas):
        made.open(replica)
        last: Hash | None = None
        for start in range(0, blocks, per_event):
            chain, offset = divmod(start, 5000)
            base = (replica * blocks + start) * 0x9E37_79B9_7F4A_7C15
            hashes: list[Hash] = [(base + i * ODD) % 2**64 for i in range(per_event)]
            ids = list(range(1_000_000 + start, 1_000_000 + start + per_event))
            ids[0] = replica * 100 + chain  # a beginning that no other chain has
            event = BlockStored(hashes, last if offset else None, ids, 1, None, "GPU", None)
            made.apply(replica, encode(Batch(0.0, [event], 0)))
            last = hashes[-1]
    total = replicas * blocks
    assert made.tree.blocks == total == made.map_entries, made.tree.blocks
    megabytes = (made.tree.bytes_used + made.map_bytes) / 1e6
    name = f"events_memory_{replicas}_replicas"
    if replicas == 100:
        bench.bar(name, megabytes, "MB", 300, scaled=False)
        per_entry = made.map_bytes / made.map_entries
        bench.bar("events_map_entry", per_entry, "bytes", 40, scaled=False)
    else:
        bench.tell(name, megabytes, "MB")


# A fleet over sockets ---------------------------------------------------------------------------

STEPS_A_S = 10  # engine steps a second that prefill: 2,000 tokens each at 20,000 tokens a second


def prefill_payloads() -> list[bytes]:
    """Steps of 2,000 tokens: one event a request of about 500, a removal for each block stored."""
    rnd = random.Random(3)
    payloads, old = [], [rnd.getrandbits(64) for _ in range(125)]
    for _ in range(50):
        events: list[BlockStored | BlockRemoved] = [BlockRemoved([h], "GPU", 0) for h in old]
        new = [stored_event(rnd, blocks, None) for blocks in (31, 31, 31, 32)]
        old = [int(h) for event in new for h in event.block_hashes]  # type: ignore[call-overload]
        payloads.append(encode(Batch(0.0, [*events, *new], 0)))
    return payloads


def publish(messages: int, ports: list[int]) -> None:
    """A process of its own: `messages` to each port, as fast as possible, when it is told to."""
    payloads = prefill_payloads() if len(ports) > 1 else frames(8, 10_240)
    context = zmq.Context()
    sockets = []
    for port in ports:
        socket = context.socket(zmq.PUB)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.bind(f"tcp://127.0.0.1:{port}")
        sockets.append(socket)
    sys.stdout.write("up\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for seq in range(messages):
        for socket in sockets:
            socket.send_multipart([b"", seq.to_bytes(8, "big"), payloads[seq % len(payloads)]])
    sys.stdin.readline()
    context.destroy(linger=0)


@contextlib.contextmanager
def publisher(messages: int, sources: int) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Its ports, and what makes it begin."""
    ports = free_ports(sources)
    command = [sys.executable, "-m", "benchmarks.bench_events", "--publish", str(messages)]
    with subprocess.Popen(
        [*command, *map(str, ports)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "up\n"
        told = child.stdin

        def go() -> None:
            told.write("go\n")
            told.flush()

        yield ports, go
        told.write("done\n")


def free_ports(count: int) -> list[int]:
    context = zmq.Context()
    held = [context.socket(zmq.PUB) for _ in range(count)]
    ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in held]
    context.destroy(linger=0)
    return ports


class TimedPump(Pump):
    """Keeps the longest turn that it took on the loop, in seconds of CPU."""

    longest = 0.0

    def _run(self) -> None:
        began = time.thread_time()
        super()._run()
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


async def hear(ports: list[int], wanted: int, go: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds of the process for `wanted` batches, and of the longest turn on the loop."""
    keep_freed_memory()
    pump = TimedPump(asyncio.get_running_loop())
    sources = opened(ports, pump)
    await asyncio.sleep(1.5)  # connections and subscriptions
    pump.longest, end = 0.0, time.monotonic() + 120
    began = time.process_time()
    go()
    while sum(each.stream.counts["batches"] for each in sources) < wanted:
        assert time.monotonic() < end, [each.stream.counts for each in sources[:3]]
        await asyncio.sleep(0.02)
    spent = time.process_time() - began
    assert all(each.stream.counts["gap"] == 0 for each in sources)
    for each in sources:
        each.close()
    return spent, pump.longest


def hear_typed(ports: list[int], wanted: int, go: Callable[[], None]) -> float:
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


def over_sockets(bench: Bench, rounds: int) -> None:
    """Both ways with their sockets: 8 blocks an event, 4 events a message, one publisher."""
    messages, ours, ratios = 10_000, [], []
    blocks = messages * EVENTS * 8
    for _ in range(rounds):
        with publisher(messages, 1) as (ports, go):
            mine = asyncio.run(hear(ports, messages, go))[0]
        with publisher(messages, 1) as (ports, go):
            theirs = hear_typed(ports, messages, go)
        ours.append(mine / blocks * 1e9)
        ratios.append(theirs / mine)
    bench.tell("events_8_with_socket_a_block", median(ours), "ns")
    bench.bar("events_8_with_socket_ratio", None, "x", 3.0, "more", samples=ratios, scaled=False)


def fleet(bench: Bench, rounds: int, sources: int, seconds: int) -> None:
    """So many engines that prefill 20,000 tokens a second each, all at once and in a flood."""
    shares, turns, messages = [], [], STEPS_A_S * seconds
    for _ in range(rounds):
        with publisher(messages, sources) as (ports, go):
            spent, longest = asyncio.run(hear(ports, sources * messages, go))
        shares.append(spent / seconds * 100)
        turns.append(longest * 1000)
    bench.bar(f"events_{sources}_sources_20000_tokens_s", None, "% core", 10, samples=shares)
    bench.bar("events_longest_turn", min(turns), "ms", 2)
    bench.tell("events_longest_turn_worst", max(turns), "ms")


def main() -> int:
    logging.disable(logging.CRITICAL)  # sources without a replay socket say so
    bench = Bench("events", (__doc__ or "").partition("\n")[0].removeprefix("Question: "))
    rounds = 5 if bench.args.quick else 9
    decode_and_apply(bench, rounds)
    churn(bench, rounds)
    memory(bench, 100)
    if not bench.args.quick:
        memory(bench, 512)
    over_sockets(bench, 2 if bench.args.quick else 5)
    fleet(bench, 2 if bench.args.quick else 5, 100, 4)
    return bench.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--publish"]:
        publish(int(sys.argv[2]), [int(port) for port in sys.argv[3:]])
        sys.exit(0)
    sys.exit(main())
