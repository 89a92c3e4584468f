"""Is the compiled core fast and small enough? Hashing, prefix tree, recency list, against bars.

    python -m benchmarks.bench_core [--quick] [--save]

Load of the tree (peers/index_load.py): prompts of 512 or 2,048 blocks that share their first 32
with one of 50 families, each on 3 of 512 replicas to 100, 60 and 30 %. All figures are CPU time of
this thread, medians of rounds of many calls from Python, the call included. `--quick` leaves out
the trees of 10M blocks and the sizes above 1M. The same look-ups and events go through the
released `RadixTree` of ai-dynamo-runtime in its own venv. Good: every bar ok.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from benchmarks.bars import MAX_SPREAD, Bench, cpu_seconds, spread, steady
from benchmarks.peers.contenders import Unavailable, package_venv
from benchmarks.peers.index_load import DEPTHS, FAMILY_BLOCKS, prompts, random_keys
from warmlane._core.hashing import root_key, token_keys
from warmlane._core.lru import Lru
from warmlane._core.radix import RadixTree

REPLICAS = 512
ROUNDS = 15
QUERIES = 2_000
PEER_BLOCKS = 200_000
PEER = Path(__file__).resolve().parent / "peers" / "dynamo_tree.py"

Keys: TypeAlias = "array[int]"


class Loaded:
    """A tree filled with the load, and a sample of the prompts that it holds."""

    def __init__(self, prompt_blocks: int, blocks: int, seed: int = 1) -> None:
        self.tree = RadixTree(0, REPLICAS)
        self.prompt_blocks = prompt_blocks
        self.prompts: list[tuple[Keys, list[int]]] = []
        self.bytes_per_block: list[tuple[float, int]] = []
        self.longest_insert_s = 0.0
        self.insert_s = 0.0
        self.inserted = 0
        self._load = prompts(prompt_blocks, REPLICAS, seed)
        self._source = random.Random(seed)
        self.grow(blocks)

    def grow(self, blocks: int) -> None:
        """Insert prompts until the tree has so many distinct blocks; watch every call and size."""
        measured = self.tree.blocks
        for prompt, holders in self._load:
            if len(self.prompts) < 2_000:
                self.prompts.append((prompt, holders))
            else:
                self.prompts[self._source.randrange(2_000)] = (prompt, holders)
            for replica, depth in zip(holders, DEPTHS, strict=True):
                part = prompt[: int(self.prompt_blocks * depth)]
                start = time.thread_time()
                self.tree.insert(replica, part)
                spent = time.thread_time() - start
                self.insert_s += spent
                self.inserted += len(part)
                self.longest_insert_s = max(self.longest_insert_s, spent)
            now = self.tree.blocks
            if now >= 300_000 and now >= measured * 1.01:
                measured = now
                self.bytes_per_block.append((self.tree.bytes_used / now, now))
            if now >= blocks:
                return

    def match_samples(self, rounds: int = ROUNDS) -> list[float]:
        """Microseconds a match, one value a round of QUERIES random prompts."""
        gpu, cpu, any_tier = (array("i", bytes(4 * REPLICAS)) for _ in range(3))
        match, samples = self.tree.match, []
        for turn in range(rounds + 1):
            asked = [self._source.choice(self.prompts)[0] for _ in range(QUERIES)]

            def ask(asked: list[Keys] = asked) -> None:
                for keys in asked:
                    match(keys, gpu, cpu, any_tier)

            spent = cpu_seconds(ask) / QUERIES * 1e6
            if turn:  # the first round warms what the updates before it have pushed out
                samples.append(spent)
        return samples

    def punch_holes(self, share: float) -> None:
        """Remove one block in the middle of this share of the prompts, on the whole holder."""
        for prompt, holders in self.prompts:
            if self._source.random() < share:
                at = self._source.randrange(FAMILY_BLOCKS, self.prompt_blocks)
                self.tree.remove(holders[0], prompt[at : at + 1])
        while self.tree.maintain(1000):
            pass


def per_unit(work: Callable[[], object], units: int) -> float:
    """Nanoseconds of CPU time a unit."""
    return cpu_seconds(work) / units * 1e9


def bench_hashing(bench: Bench) -> None:
    tokens = array("I", random.Random(2).randbytes(4 * 16 * 2048))
    root = root_key("model")

    def hash_all() -> None:
        for _ in range(100):
            token_keys(root, tokens, 16)

    samples = [per_unit(hash_all, 100 * 2048) for _ in range(ROUNDS)]
    bench.bar("hash_16_tokens", None, "ns/block", 10, samples=samples)


def bench_lru(bench: Bench) -> None:
    source, count = random.Random(3), 1_000
    lru = Lru(count * 512)
    chains = [random_keys(source, 512) for _ in range(count)]
    for chain in chains:
        lru.touch(chain)
    samples = []
    for _ in range(ROUNDS):
        asked = source.sample(chains, 200)

        def touch(asked: list[Keys] = asked) -> None:
            for chain in asked:
                lru.touch(chain)

        samples.append(per_unit(touch, 200 * 512))
    bench.bar("lru_touch", None, "ns/block", 60, samples=samples)


def update_samples(loaded: Loaded, a_call: int) -> tuple[list[float], list[float]]:
    """Chains into the full tree and out again, `a_call` blocks at a time: (insert, remove) ns.

    Half of the chains are new, half are prompts of the tree on one more random replica. The first
    round takes the memory that later ones reuse and is not counted: first touches of fresh pages
    cost more than the insert and are the system's (the build figures have them in).
    """
    tree, source = loaded.tree, random.Random(4)
    inserts: list[float] = []
    removes: list[float] = []
    for turn in range(ROUNDS + 1):
        chains = [random_keys(source, loaded.prompt_blocks) for _ in range(100)]
        chains += [source.choice(loaded.prompts)[0] for _ in range(100)]
        calls = [
            (source.randrange(REPLICAS), chain[at : at + a_call], chain[at - 1] if at else 0)
            for chain in chains
            for at in range(0, loaded.prompt_blocks, a_call)
        ]
        units = sum(len(keys) for _, keys, _ in calls)
        backwards = [(replica, keys[::-1]) for replica, keys, _ in reversed(calls)]

        def insert(calls: list[tuple[int, Keys, int]] = calls) -> None:
            for replica, keys, parent in calls:
                tree.insert(replica, keys, parent=parent)

        def remove(calls: list[tuple[int, Keys]] = backwards) -> None:
            for replica, keys in calls:
                tree.remove(replica, keys)

        spent = per_unit(insert, units), per_unit(remove, units)
        if turn:
            inserts.append(spent[0])
            removes.append(spent[1])
    return inserts, removes


def bench_updates(bench: Bench, loaded: Loaded) -> None:
    for _ in range(3):
        inserts, removes = update_samples(loaded, loaded.prompt_blocks)
        if max(spread(inserts), spread(removes)) <= MAX_SPREAD:
            break
    bench.bar("radix_insert_1m", None, "ns/block", 50, samples=inserts)
    bench.bar("radix_remove_1m", None, "ns/block", 120, samples=removes)
    for name, samples in zip(("insert", "remove"), update_samples(loaded, 16), strict=True):
        bench.tell(f"radix_{name}_1m_16_a_call", statistics.median(samples), "ns/block")


def bench_match(bench: Bench, loaded: Loaded, size: str, limit_us: float) -> None:
    blocks = loaded.prompt_blocks
    plain = steady(loaded.match_samples)
    bench.bar(f"radix_match_{blocks}_{size}", None, "us", limit_us, samples=plain)
    loaded.punch_holes(0.01)
    holed = steady(loaded.match_samples)
    middle = statistics.median(plain)
    ratio = [sample / middle for sample in holed]
    bench.bar(
        f"radix_match_{blocks}_{size}_holes",
        None,
        "x of no holes",
        2,
        samples=ratio,
        scaled=False,
    )


def bench_size(bench: Bench, loaded: Loaded, size: str) -> None:
    worst, at = max(loaded.bytes_per_block)
    name = f"radix_bytes_{loaded.prompt_blocks}_to_{size}"
    bench.bar(name, worst, "B/block", 48, scaled=False)
    bench.tell(f"{name}_worst_at", at, "blocks")
    bench.tell(f"{name}_at_end", loaded.tree.bytes_used / loaded.tree.blocks, "B/block")
    grown = loaded.insert_s / loaded.inserted * 1e9
    bench.tell(f"radix_build_{loaded.prompt_blocks}_{size}", grown, "ns/block")


def sweep(tree: RadixTree) -> list[float]:
    """CPU seconds of each slice of maintain(1000) until nothing is left."""
    slices = []
    left = True
    while left:
        start = time.thread_time()
        left = tree.maintain(1000)
        slices.append(time.thread_time() - start)
    return slices


def bench_slices(bench: Bench, name: str, slices: list[float]) -> None:
    """Slices asked to take 1 ms: the 99th of 100 (the very longest is the machine's, told only)."""
    ordered = sorted(slices)
    bench.bar(f"{name}_slice_p99", ordered[len(ordered) * 99 // 100] * 1e3, "ms", 1)
    bench.tell(f"{name}_slice_longest", ordered[-1] * 1e3, "ms")


def bench_drop(bench: Bench, blocks: int, size: str) -> None:
    """Drop a replica that holds all blocks of the tree alone: the dearest drop there is."""
    tree, source = RadixTree(0, REPLICAS), random.Random(5)
    while tree.blocks < blocks:
        tree.insert(0, random_keys(source, 512))
    start = time.thread_time()
    tree.drop(0)
    hide_us = (time.thread_time() - start) * 1e6
    slices = sweep(tree)
    bench.bar(f"radix_drop_all_{size}", sum(slices), "s", 2)
    bench.tell(f"radix_drop_all_{size}_hide", hide_us, "us")
    bench_slices(bench, f"radix_drop_all_{size}", slices)


def bench_hole(bench: Bench, blocks: int, size: str) -> None:
    """Remove the one first block of a tree of this size, and store it again: hide all, show all."""
    tree, source = RadixTree(0, REPLICAS), random.Random(6)
    root = random_keys(source, 1)
    tree.insert(0, root)
    while tree.blocks < blocks:
        tree.insert(0, random_keys(source, 512), parent=root[0])
    for name, change in (("hide", tree.remove), ("show", tree.insert)):
        start = time.thread_time()
        change(0, root)
        at_once = time.thread_time() - start
        slices = sweep(tree)
        bench.tell(f"radix_{name}_{size}_call", at_once * 1e3, "ms")
        bench.tell(f"radix_{name}_{size}_all", sum(slices) / blocks * 1e9, "ns/block")
        bench_slices(bench, f"radix_{name}_{size}", slices)


def bench_peer(bench: Bench) -> None:
    """The same prompts, events and look-ups here and in the peer's process."""
    prompt_blocks, seed = 512, 7
    names = ("peer_match_ratio", "peer_event_ratio")
    command = [str(PEER), *(str(n) for n in (PEER_BLOCKS, prompt_blocks, REPLICAS, 200, seed))]
    try:
        python = package_venv("ai-dynamo-runtime")
        done = subprocess.run(
            [str(python), *command], stdin=subprocess.DEVNULL, capture_output=True, timeout=300
        )
        if done.returncode:
            raise Unavailable(done.stderr.decode(errors="replace").strip().splitlines()[-1])
        peer = json.loads(done.stdout)
        if not peer["complete"]:
            raise Unavailable("it does not find whole prompts")
    except (Unavailable, subprocess.TimeoutExpired) as error:
        for name in names:
            bench.bar(name, None, "x", 1, "more", scaled=False, why_void=f"peer: {error}")
        return
    ours = Loaded(prompt_blocks, PEER_BLOCKS, seed)
    match_us = statistics.median(ours.match_samples())
    tree, spent, units = RadixTree(0, REPLICAS), 0.0, 0
    count = -(-PEER_BLOCKS // (prompt_blocks - FAMILY_BLOCKS))
    for prompt, holders in islice(prompts(prompt_blocks, REPLICAS, seed), count):
        for replica, depth in zip(holders, DEPTHS, strict=True):
            part = prompt[: int(prompt_blocks * depth)]
            frames = [
                (part[at : at + 64], part[at - 1] if at else 0) for at in range(0, len(part), 64)
            ]
            start = time.process_time()
            for keys, parent in frames:
                tree.insert(replica, keys, parent=parent)
            spent += time.process_time() - start
            units += len(part)
    bench.tell(f"ai-dynamo-runtime_{peer['version']}_match", peer["match_s"] * 1e6, "us")
    bench.tell("ai-dynamo-runtime_event", peer["event_s_per_block"] * 1e9, "ns/block")
    bench.tell("peer_load_ours_match", match_us, "us")
    bench.tell("peer_load_ours_event", spent / units * 1e9, "ns/block (keys given, no decode)")
    bench.bar(names[0], peer["match_s"] * 1e6 / match_us, "x", 1, "more", scaled=False)
    ratio = peer["event_s_per_block"] / (spent / units)
    bench.bar(names[1], ratio, "x", 1, "more", scaled=False)


def main() -> int:
    bench = Bench("core", "is the compiled core fast and small enough?")
    bench_hashing(bench)
    bench_lru(bench)
    small = Loaded(512, 1_000_000)
    bench_updates(bench, small)
    bench_match(bench, small, "1m", 5)
    bench_size(bench, small, "1m")
    del small
    long = Loaded(2_048, 1_000_000)
    bench_match(bench, long, "1m", 6)
    bench_size(bench, long, "1m")
    del long
    bench_hole(bench, 1_000_000, "1m")
    if bench.args.quick:
        bench_drop(bench, 1_000_000, "1m")
    else:
        longest_ms: list[float] = []
        for prompt_blocks, limit_us in ((512, 8), (2_048, 10)):
            loaded = Loaded(prompt_blocks, 10_000_000)
            bench_match(bench, loaded, "10m", limit_us)
            bench_size(bench, loaded, "10m")
            longest_ms.append(loaded.longest_insert_s * 1e3)
            del loaded
        # A stop of the structure's growth shows in both builds, one of the machine in one.
        bench.bar("radix_growth_stop_10m", min(longest_ms), "ms", 5)
        bench_drop(bench, 10_000_000, "10m")
    bench_peer(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
