"""Question: what do the approximate index, its recency sets and the ledger cost?

Run: python -m benchmarks.bench_lru [--quick] [--save]. Good: every bar ok. CPU time of one thread;
each sample is one pass over all chains in a new random order, so that a set of 1M blocks (33 MB)
does not sit in the cache by luck.
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Callable
from functools import partial

from benchmarks.bars import Bench, cpu_seconds
from warmlane._core.ledger import Ledger
from warmlane._core.lru import Lru
from warmlane.router.index import ApproximateIndex

CHAIN = 64


def fresh_chains(rnd: random.Random, count: int) -> list[array[int]]:
    return [array("Q", [rnd.getrandbits(64) for _ in range(CHAIN)]) for _ in range(count)]


def repeat(run: Callable[[], None], passes: int) -> None:
    for _ in range(passes):
        run()


def lru_samples(blocks: int, rounds: int) -> tuple[list[float], list[float], float]:
    """ns a block touched when present, ns a block inserted while one is evicted, bytes a block."""
    rnd = random.Random(1)
    shadow = Lru(blocks)
    chains = fresh_chains(rnd, blocks // CHAIN)
    for chain in chains:
        shadow.touch(chain)
    touched, inserted = [], []

    def touch_all(group: list[array[int]]) -> Callable[[], None]:
        def run() -> None:
            for chain in group:
                shadow.touch(chain)

        return run

    for _ in range(rounds):
        rnd.shuffle(chains)
        run, passes = touch_all(chains), max(1, 1_000_000 // blocks)
        spent = cpu_seconds(partial(repeat, run, passes))
        touched.append(spent / passes / len(chains) / CHAIN * 1e9)
    for _ in range(rounds):
        chains = fresh_chains(rnd, max(200, blocks // CHAIN // 4))
        inserted.append(cpu_seconds(touch_all(chains)) / len(chains) / CHAIN * 1e9)
    return touched, inserted, shadow.bytes_used / len(shadow)


def ledger_samples(rounds: int) -> list[float]:
    """ns an event: open, moved, first_token, progress, close of 5,000 requests in turn."""
    book, samples = Ledger(64), []

    def run() -> None:
        tickets = [book.open(at & 63, 100.0, 500.0, 1.0) for at in range(5000)]
        for ticket in tickets:
            book.moved(ticket, 5, 50.0)
            book.first_token(ticket, 2.0)
            book.progress(ticket, 7)
            book.close(ticket, 3.0)

    for _ in range(rounds):
        samples.append(cpu_seconds(run) / 25_000 * 1e9)
    return samples


def index_samples(rounds: int) -> tuple[list[float], list[float]]:
    """ns a match and a repeated record: 64-block chains, 8 replicas, 51,200 blocks."""
    index, out = ApproximateIndex(max_replicas=8), array("i", bytes(32))
    for slot in range(8):
        index.add(slot, 100_000)
    chains = fresh_chains(random.Random(2), 800)

    def record() -> None:
        for at, chain in enumerate(chains):
            index.record(at % 8, chain)

    def match() -> None:
        for chain in chains:
            index.match(chain, out)

    record()
    # Ten passes a sample: one is half a millisecond, which any neighbour on the machine disturbs.
    matched = [cpu_seconds(lambda: repeat(match, 10)) / len(chains) * 1e8 for _ in range(rounds)]
    recorded = [cpu_seconds(lambda: repeat(record, 10)) / len(chains) * 1e8 for _ in range(rounds)]
    return matched, recorded


def long_samples(rounds: int) -> dict[str, list[float]]:
    """us a record or match of 512 blocks: held, new (as many evicted), a quarter new, matched.

    One replica that is full at 100,000 blocks, as a 64 KB prompt in blocks of 128 bytes meets it.
    """
    index, rnd, out = ApproximateIndex(max_replicas=8), random.Random(3), array("i", bytes(32))
    index.add(0, 100_000)
    starts = [array("Q", rnd.randbytes(8 * 384)) for _ in range(8)]
    held = [array("Q", rnd.randbytes(8 * 512)) for _ in range(190)]
    samples: dict[str, list[float]] = {"held": [], "match": [], "new": [], "quarter_new": []}

    def record(chains: list[array[int]]) -> None:
        for chain in chains:
            index.record(0, chain)

    def match(chains: list[array[int]]) -> None:
        for chain in chains:
            index.match(chain, out)

    for _ in range(rounds):
        record(held)
        for name, work in (("held", record), ("match", match)):
            spent = cpu_seconds(partial(repeat, partial(work, held), 10))
            samples[name].append(spent / 10 / len(held) * 1e6)
        new = [array("Q", rnd.randbytes(8 * 512)) for _ in range(1000)]
        samples["new"].append(cpu_seconds(partial(record, new)) / len(new) * 1e6)
        grown = [rnd.choice(starts) + array("Q", rnd.randbytes(8 * 128)) for _ in range(1000)]
        samples["quarter_new"].append(cpu_seconds(partial(record, grown)) / len(grown) * 1e6)
    return samples


def main() -> int:
    bench = Bench("lru", "cost of the recency sets and of the ledger")
    rounds = 5 if bench.args.quick else 11
    sizes = (100_000,) if bench.args.quick else (100_000, 1_000_000)
    for blocks in sizes:
        touched, inserted, used = lru_samples(blocks, rounds)
        size = f"{blocks // 1000}k"
        bench.bar(f"lru_touch_{size}", None, "ns/block", 60, samples=touched)
        bench.bar(f"lru_insert_evict_{size}", None, "ns/block", 150, samples=inserted)
        bench.bar(f"lru_bytes_{size}", used, "bytes/block", 48, scaled=False)
    bench.bar("ledger_event", None, "ns", 200, samples=ledger_samples(3 * rounds))
    matched, recorded = index_samples(3 * rounds)
    bench.bar("index_match_64", None, "ns", 2000, samples=matched)
    bench.bar("index_record_again_64", None, "ns", 3000, samples=recorded)
    longer = long_samples(2 * rounds)
    bench.bar("index_record_512_held", None, "us", 2, samples=longer["held"])
    bench.bar("index_record_512_new", None, "us", 12, samples=longer["new"])
    bench.bar("index_record_512_quarter_new", None, "us", 6, samples=longer["quarter_new"])
    bench.bar("index_match_512", None, "us", 1.5, samples=longer["match"])
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
