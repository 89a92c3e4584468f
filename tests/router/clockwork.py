"""A router over modelled replicas on a virtual clock: small runs that compare policies.

Prompts are token ids (uint32 as bytes) and block keys are shared with the engines, so that a hit
is the engine's own.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import Any, NamedTuple

from tests.router.fleet import TURN, router_of
from warmlane._core.hashing import token_keys
from warmlane.router.sim.engine import Engine, EngineConfig, Sequence
from warmlane.router.sim.timing import PRESETS
from warmlane.router.types import Decision, Kind, LoadSnapshot, Outcome, Request

BLOCK = 16


class Job(NamedTuple):
    """One request; `next_turn` follows `think_s` after its end."""

    arrives: float
    tokens: bytes
    output: int
    next_turn: Job | None = None
    think_s: float = 1.0


class Result(NamedTuple):
    """Sorted times in seconds, prompt and hit tokens by the engines, requests per replica."""

    ttft: list[float]
    e2e: list[float]
    queries: int
    hits: int
    share: Counter[int]

    @property
    def mean_ttft(self) -> float:
        return sum(self.ttft) / len(self.ttft)

    @property
    def mean_e2e(self) -> float:
        return sum(self.e2e) / len(self.e2e)

    @property
    def hit_share(self) -> float:
        return self.hits / self.queries

    def p(self, share: float) -> float:
        return self.ttft[int(len(self.ttft) * share)]


def run(
    jobs: list[Job],
    policy: str = "default",
    *,
    replicas: int = 4,
    preset: str = "llama-3.1-8b/h100",
    kv_tokens: int | None = None,
    pool: dict[str, Any] | None = None,
) -> Result:
    """Replay `jobs`; every request must be answered and every ticket returned."""
    timing = PRESETS[preset]
    blocks = (kv_tokens or timing.kv_tokens) // BLOCK
    router = router_of(replicas, policy=policy, **(pool or {}))
    engines = [
        Engine(
            EngineConfig(timing=timing, blocks=blocks, max_num_batched_tokens=timing.step_tokens)
        )
        for _ in range(replicas)
    ]
    for slot in range(replicas):
        told = LoadSnapshot(taken_at=0.0, block_size=BLOCK, num_blocks=blocks)
        router.pools["default"].update_load(slot, told)
    events: list[tuple[float, int, str, Any]] = []
    for number, job in enumerate(jobs):
        heapq.heappush(events, (job.arrives, number, "arrive", job))
    count, done, share = len(jobs), [], Counter[int]()
    while events:
        now, _, what, item = heapq.heappop(events)
        if what == "arrive":
            slot = _arrive(router, engines, item, now, count)
            share[slot] += 1
        else:
            slot = item
            for sequence in _end_step(router, engines[slot], now):
                done.append(sequence)
                job = sequence.owner[0]
                if job.next_turn is not None:
                    count += 1
                    start = now + job.think_s
                    heapq.heappush(events, (start, count, "arrive", job.next_turn))
        engine = engines[slot]
        if not engine.stepping:
            seconds = engine.begin_step(now)
            if seconds is not None:
                count += 1
                heapq.heappush(events, (now + seconds, count, "step", slot))
    assert router.open_tickets == 0 and not any(router.pools["default"].ledger.prefill_tokens)
    return Result(
        sorted(each.first_token_at - each.arrived for each in done),
        sorted(each.finished_at - each.arrived for each in done),
        sum(engine.counters.prefix_queries for engine in engines),
        sum(engine.counters.prefix_hits for engine in engines),
        share,
    )


def _arrive(router: Any, engines: list[Engine], job: Job, now: float, turn: int) -> int:
    request = Request(kind=Kind.COMPLETIONS, model="m", tokens=job.tokens)
    decision: Decision = router.decide(request, now, turn * TURN % 2**64)
    slot = decision.choices[0]
    router.sent(decision.ticket, slot, now)
    keys = token_keys(1, job.tokens, BLOCK)
    prompt = len(job.tokens) // 4
    engines[slot].add(Sequence(prompt, job.output, keys, owner=(job, decision, slot)), now)
    return slot


def _end_step(router: Any, engine: Engine, now: float) -> list[Sequence]:
    output = engine.end_step(now)
    for sequence in output.advanced:
        if sequence.produced == 1:
            router.first_token(sequence.owner[1].ticket, now)
    for sequence in output.finished:
        usage = Outcome(
            prompt_tokens=sequence.prompt,
            cached_tokens=sequence.cached,
            output_tokens=sequence.output,
        )
        router.close(sequence.owner[1].ticket, usage, now)
    return output.finished
