"""Question: what does a decision cost, from the prefix key to the ticket, and all events after it?

Run: python -m benchmarks.bench_decide [--quick] [--save]. Good: every bar ok. Default mix, fresh
scrapes on every replica, 4 requests a replica in flight, and prompts of which each replica holds
another share. CPU time of one thread. The events are `sent` (records the prompt in the view),
`first_token` and `close` with usage, as the proxy tells them.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

from benchmarks.bars import Bench, cpu_seconds
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.lane import Prepared
from warmlane.router.types import Decision, Kind, LoadSnapshot, Outcome, Request

BLOCK_BYTES = 128
PROMPTS = 200
BATCH = 400


class Fleet:
    """A router with replicas, warm prompts and load."""

    def __init__(self, replicas: int, blocks: int, mix: list[str] | None = None) -> None:
        capacity = PROMPTS * blocks * BLOCK_BYTES // 4
        pool = {
            "replicas": [f"http://r{i}:8000" for i in range(replicas)],
            "capacity_tokens": 2 * capacity,
            "scorers": mix or [],
        }
        self.router = Router(from_data({"pools": [pool]}))
        self.rand = random.Random(1)
        self.prompts = [self._prompt(blocks) for _ in range(PROMPTS)]
        self.answer = Outcome(prompt_tokens=blocks * 32, cached_tokens=blocks * 16)
        lane = self.router.lanes["default"]
        for prepared in self.prompts:
            for slot in self.rand.sample(range(replicas), 3):
                length = self.rand.randint(1, blocks)
                lane.view.record(slot, "text", prepared.key.keys.head(length))
        for slot in range(replicas):
            load = LoadSnapshot(taken_at=0.0, waiting=self.rand.random(), running=9, kv_usage=0.4)
            lane.pool.update_load(slot, load)
        for _ in range(4 * replicas):
            self.decide()

    def _prompt(self, blocks: int) -> Prepared:
        text = self.rand.randbytes(blocks * BLOCK_BYTES)
        return self.router.prepare(Request(kind=Kind.CHAT, model="m", prompt=text))

    def decide(self) -> Decision:
        prepared = self.prompts[int(self.rand.random() * PROMPTS)]
        return self.router.decide_prepared(prepared, 1.0, self.rand.getrandbits(64))

    def samples(self, rounds: int) -> tuple[list[float], list[float]]:
        """us a decision, us for all later events of it; BATCH requests open at a time."""
        decided, told = [], []
        for _ in range(rounds):
            picks = [self.rand.choice(self.prompts) for _ in range(BATCH)]
            chances = [self.rand.getrandbits(64) for _ in range(BATCH)]
            decisions: list[Decision] = []

            def decide(
                picks: list[Prepared] = picks,
                chances: list[int] = chances,
                decisions: list[Decision] = decisions,
            ) -> None:
                for prepared, chance in zip(picks, chances, strict=True):
                    decisions.append(self.router.decide_prepared(prepared, 1.0, chance))

            def tell(decisions: list[Decision] = decisions) -> None:
                router, answer = self.router, self.answer
                for decision in decisions:
                    router.sent(decision.ticket, decision.choices[0], 1.0)
                    router.first_token(decision.ticket, 1.5)
                    router.close(decision.ticket, answer, 2.0)

            decided.append(cpu_seconds(decide) / BATCH * 1e6)
            told.append(cpu_seconds(tell) / BATCH * 1e6)
        return decided, told

    def each(self, count: int) -> list[float]:
        """us of single decisions, for the tail; each is closed before the next."""
        found = []
        for _ in range(count):
            prepared, chance = self.rand.choice(self.prompts), self.rand.getrandbits(64)
            start = time.thread_time_ns()
            decision = self.router.decide_prepared(prepared, 1.0, chance)
            found.append((time.thread_time_ns() - start) / 1e3)
            self.router.close(decision.ticket, Outcome(status="cancelled"), 2.0)
        return found


def main() -> int:
    bench = Bench("decide", (__doc__ or "").partition("\n")[0])
    rounds = 9 if bench.args.quick else 25
    for replicas, blocks, limit in ((8, 64, 8.0), (64, 1024, 40.0)):
        fleet = Fleet(replicas, blocks)
        fleet.samples(3)
        decided, told = fleet.samples(rounds)
        size = f"{replicas}x{blocks}"
        bench.bar(f"decide_{size}", None, "us", limit, samples=decided)
        if blocks == 64:
            bench.bar(f"later_events_{size}", None, "us", 4.0, samples=told)
        else:
            bench.tell(f"later_events_{size}", statistics.median(told), "us")
    fleet = Fleet(64, 2048)
    fleet.each(500)
    single = sorted(fleet.each(3000 if bench.args.quick else 10_000))
    bench.bar("decide_p99_64x2048", single[int(len(single) * 0.99)], "us", 500.0)
    bench.tell("decide_p50_64x2048", single[len(single) // 2], "us")
    plain = Fleet(8, 64, ["benchmarks.bench_decide:Plain"])
    plain.samples(2)
    bench.tell("decide_8x64_one_plain_python_scorer", statistics.median(plain.samples(5)[0]), "us")
    return bench.finish()


class Plain:
    """A scorer of a user, in plain Python."""

    def score(self, request: Request, candidates: object) -> list[float]:
        requests = candidates.requests  # type: ignore[attr-defined]
        return [1.0 / (1.0 + requests[slot]) for slot in range(len(candidates))]  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
