"""Question: what do engine events cost to decode, apply and keep?

Run: python -m benchmarks.bench_events [--quick] [--save]. Good: every bar ok. Frames are vLLM's map
form, four events each, blocks of 16 token ids below 128,000. CPU time of this thread. The
contender is what a router without a compiled intake does: a typed msgspec decoder, and then the
very same apply, given the decoded lists. With their sockets: `bench_events_wire`.
"""

from __future__ import annotations

import random
import sys
from statistics import median

import msgspec

from benchmarks.bars import Bench, cpu_seconds
from benchmarks.peers.event_load import (
    EVENTS,
    SIZE,
    Batch,
    BlockRemoved,
    BlockStored,
    Hash,
    encode,
    frames,
    stored_event,
)
from warmlane._core.kv_events import Intake
from warmlane._core.radix import RadixTree

ODD = 0xD6E8_FEB8_6659_FD93  # steps of it look random and never meet
GIANT = 8_192  # blocks of one event: 131,072 tokens prefilled in one step, without chunks

typed = msgspec.msgpack.Decoder(Batch)


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
            ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
            bench.bar("events_8_ratio_to_typed", None, "x", 3, "more", samples=ratios, scaled=False)
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


def giant_event(bench: Bench, rounds: int) -> None:
    """One event is applied at once, whatever its size: the longest step that cannot be cut."""
    payload = encode(Batch(0.0, [stored_event(random.Random(5), GIANT, None)], 0))
    samples = []
    for _ in range(rounds + 1):
        made = intake()
        apply_frames(made, [payload])
        made.clear(0)
        samples.append(cpu_seconds(lambda made=made: apply_frames(made, [payload])) * 1e3)  # type: ignore[misc]
    bench.bar(f"events_one_of_{GIANT}_blocks", None, "ms", 2, samples=samples[1:])


def flood(bench: Bench) -> None:
    """99 replicas hold 1,000 blocks each; one stores without end, below a cap for 200,000 blocks.

    Fair: the flood costs the flooder, nobody else. With the cap for what hashes mean as the router
    has it, which the flooder meets first, and without, so that the tree's own cap is met.
    """
    cap, used, kept, told = 10 << 20, 0.0, 100.0, 0
    for map_cap in (cap // 2, 0):
        most, least, refused = flooded(cap, map_cap)
        used = max(used, most / (cap + map_cap) * 100) if map_cap else max(used, most / cap * 100)
        kept, told = min(kept, least), told + refused
    bench.bar("events_flood_bytes", used, "% of the caps", 100, scaled=False)
    bench.bar("events_flood_others_keep", kept, "% of their blocks", 99, "more", scaled=False)
    bench.tell("events_flood_refused", told, "times")


def flooded(cap: int, map_cap: int) -> tuple[int, float, int]:
    """Most bytes in use (of the tree alone without `map_cap`), the least that somebody else keeps
    in percent, and how often something was refused."""
    quiet, blocks = 99, 1_000
    made = Intake(RadixTree(cap, quiet + 1), map_cap)
    rnd = random.Random(6)
    for replica in range(quiet):
        made.open(replica)
        made.apply(replica, encode(Batch(0.0, [stored_event(rnd, blocks, None)], 0)))
    made.open(quiet)
    chain = [stored_event(rnd, 64, None) for _ in range(64)]
    parent: Hash | None = None
    most = 0
    for turn in range(8_000):
        event = chain[turn % 64]
        event.block_hashes = [rnd.getrandbits(64) for _ in range(64)]
        event.parent_block_hash, parent = (parent if turn % 64 else None), event.block_hashes[-1]
        event.token_ids[0] = turn  # another chain
        made.apply(quiet, encode(Batch(0.0, [event], 0)))
        most = max(most, made.tree.bytes_used + (made.map_bytes if map_cap else 0))
        made.tree.maintain(1000)
    kept = min(made.tree.replica_blocks(replica) for replica in range(quiet)) / blocks * 100
    return most, kept, made.stats(quiet)["refused"] + made.tree.capped


def main() -> int:
    bench = Bench("events", (__doc__ or "").partition("\n")[0].removeprefix("Question: "))
    rounds = 5 if bench.args.quick else 9
    decode_and_apply(bench, rounds)
    churn(bench, rounds)
    giant_event(bench, rounds)
    memory(bench, 100)
    if not bench.args.quick:
        memory(bench, 512)
    flood(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
