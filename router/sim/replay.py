"""Offline replay: a workload through the real decision core and modelled replicas, no network.

Everything runs on one virtual clock: arrivals, think times, engine steps, scrapes of the replicas'
load. The router is `core.Router` itself, fed as the proxy feeds it: decide, sent, first token,
close with the usage of the answer. So two policies meet the same requests, and a run of an hour of
traffic takes seconds. `warmlane replay` prints a table of policies.

The replicas use the trace's own blocks as KV blocks; the router sees the prompts as text of 4 bytes
a token, full length. A run is a pure function of its arguments.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import msgspec

from warmlane.router.config import Config, PoolConfig
from warmlane.router.core import Router
from warmlane.router.errors import NoReplica, RouterError
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.engine import Engine, EngineConfig
from warmlane.router.sim.engine import Sequence as EngineSequence
from warmlane.router.sim.statistics import Spread, spread
from warmlane.router.sim.timing import DEFAULT_PRESET, PRESETS, Timing
from warmlane.router.sim.traces import Session, TraceError, Workload, load
from warmlane.router.sim.workload import PROFILES, Texts, cut, generate
from warmlane.router.types import Kind, LoadSnapshot, Outcome, ReplicaSpec, Request

FRONT_S = 0.0156  # HTTP and tokenizer before the engine (inference-sim's fit of vLLM)
SCRAPE_S = 1.0
MODEL = "model"


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Fleet and pacing. blocks 0: what the preset's memory holds. rate: session starts come that
    many times faster. think_cap_s: longest think time."""

    replicas: int = 4
    timing: Timing = PRESETS[DEFAULT_PRESET]
    kv_tokens: int = 0
    rate: float = 1.0
    think_cap_s: float = 120.0
    max_prompt: int = 131_072
    seed: int = 1


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's run. hit: prompt tokens from cache over prompt tokens, the engines' counters.

    imbalance: the busiest replica's busy time over the mean. predicted_hit: the router's own
    forecast of `hit` at the time of its decisions.
    """

    policy: str
    requests: int
    failed: int
    hit: float
    ttft: Spread
    e2e: Spread
    tpot_ms: float
    imbalance: float
    preemptions: int
    makespan_s: float
    predicted_hit: float


class _Live:
    """A request on its way."""

    __slots__ = ("arrived", "hit", "index", "session", "slot", "ticket")

    def __init__(self, session: Session, index: int, arrived: float) -> None:
        self.session = session
        self.index = index
        self.arrived = arrived
        self.ticket = -1
        self.slot = -1
        self.hit = 0


class Replay:
    """One run of one policy. `run` may be called once."""

    def __init__(self, workload: Workload, policy: str, options: ReplayOptions) -> None:
        self.workload = workload
        self.options = options
        self.policy = policy
        self._texts = Texts(workload.block_size)
        self._chance = Chance(options.seed)
        specs = [ReplicaSpec(url=f"http://replica-{n}:8000") for n in range(options.replicas)]
        pool = PoolConfig(name="replay", models=[MODEL], replicas=specs, policy=policy)
        self.router = Router(Config(pools=[pool]))
        self.pool = self.router.pools["replay"]
        timing = options.timing
        kv_tokens = options.kv_tokens or timing.kv_tokens
        config = EngineConfig(
            timing=timing,
            blocks=max(2, kv_tokens // workload.block_size),
            block_size=workload.block_size,
            max_num_seqs=timing.max_seqs,
            max_num_batched_tokens=timing.step_tokens,
        )
        self.engines = [Engine(config) for _ in range(options.replicas)]
        self._stepping = [False] * options.replicas
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._open = 0
        self._ttft: list[float] = []
        self._e2e: list[float] = []
        self._decode_s = 0.0
        self._decoded = 0
        self._failed = 0
        self._predicted = 0
        self._prompt = 0
        self._end = 0.0

    def run(self) -> Report:
        """Play to the end."""
        first = min((session.start_s for session in self.workload.sessions), default=0.0)
        for session in self.workload.sessions:
            self._open += 1
            at = (session.start_s - first) / self.options.rate
            self._at(at, partial(self._arrive, session, 0))
        self._at(0.0, self._scrape)
        while self._events and self._open:
            now, _, call = heapq.heappop(self._events)
            self._end = now
            call(now)
        return self._report()

    def _at(self, when: float, call: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), call))

    def _arrive(self, session: Session, index: int, now: float) -> None:
        """A turn is sent; one that no replica can hold is skipped with the rest of its session."""
        turn = session.turns[index]
        engine = self.engines[0]
        limit = min(self.options.max_prompt, engine.context_tokens)
        if turn.prompt + turn.output > limit:
            self._open -= 1
            return
        request = Request(
            kind=Kind.COMPLETIONS,
            model=MODEL,
            prompt=self._texts.prompt(turn),
            max_tokens=turn.output,
            stream=True,
        )
        live = _Live(session, index, now)
        try:
            decision = self.router.decide(request, now, self._chance.bits())
        except NoReplica:
            self._failed += 1
            self._open -= 1
            return
        live.ticket, live.slot = decision.ticket, decision.choices[0]
        live.hit = decision.hit_tokens[0]
        self._predicted += live.hit
        self._prompt += turn.prompt
        self.router.sent(live.ticket, live.slot, now)
        self._at(now + FRONT_S, partial(self._enter, live))

    def _enter(self, live: _Live, now: float) -> None:
        turn = live.session.turns[live.index]
        size = self.workload.block_size
        keys = list(turn.blocks())[: turn.prompt // size]
        sequence = EngineSequence(turn.prompt, turn.output, keys, owner=live)
        self.engines[live.slot].add(sequence, now)
        if not self._stepping[live.slot]:
            self._begin(live.slot, now)

    def _begin(self, slot: int, now: float) -> None:
        seconds = self.engines[slot].begin_step(now)
        self._stepping[slot] = seconds is not None
        if seconds is not None:
            self._at(now + seconds, partial(self._step, slot))

    def _step(self, slot: int, now: float) -> None:
        output = self.engines[slot].end_step(now)
        for sequence in output.advanced:
            if sequence.produced == 1:
                live = sequence.owner
                assert isinstance(live, _Live)
                self._ttft.append(now - live.arrived)
                self.router.first_token(live.ticket, now)
        for sequence in output.finished:
            self._finish(sequence, now)
        self._begin(slot, now)

    def _finish(self, sequence: EngineSequence, now: float) -> None:
        live = sequence.owner
        assert isinstance(live, _Live)
        self._e2e.append(now - live.arrived)
        if sequence.produced > 1:
            self._decode_s += now - sequence.first_token_at
            self._decoded += sequence.produced - 1
        outcome = Outcome(
            prompt_tokens=sequence.prompt,
            cached_tokens=sequence.cached,
            output_tokens=sequence.produced,
        )
        self.router.close(live.ticket, outcome, now)
        index = live.index + 1
        if index == len(live.session.turns):
            self._open -= 1
            return
        think_s = min(live.session.turns[index].think_s, self.options.think_cap_s)
        self._at(now + think_s, partial(self._arrive, live.session, index))

    def _scrape(self, now: float) -> None:
        """Every second: what a scrape of the replicas' metrics would tell, and maintenance."""
        for slot, engine in enumerate(self.engines):
            self.pool.update_load(
                slot,
                LoadSnapshot(
                    taken_at=now,
                    waiting=len(engine.waiting),
                    running=len(engine.running),
                    kv_usage=engine.pool.usage,
                    block_size=engine.config.block_size,
                    num_blocks=engine.config.blocks,
                    prefix_queries=engine.counters.prefix_queries,
                    prefix_hits=engine.counters.prefix_hits,
                ),
            )
        self.router.maintain(now)
        self._at(now + SCRAPE_S, self._scrape)

    def _report(self) -> Report:
        counters = [engine.counters for engine in self.engines]
        busy = [each.busy_s for each in counters]
        queries = sum(each.prefix_queries for each in counters) or 1
        return Report(
            policy=self.policy,
            requests=len(self._e2e),
            failed=self._failed,
            hit=sum(each.prefix_hits for each in counters) / queries,
            ttft=spread(self._ttft),
            e2e=spread(self._e2e),
            tpot_ms=1000 * self._decode_s / max(1, self._decoded),
            imbalance=max(busy) * len(busy) / (sum(busy) or 1.0),
            preemptions=sum(each.preemptions for each in counters),
            makespan_s=self._end,
            predicted_hit=self._predicted / (self._prompt or 1),
        )


def compare(workload: Workload, policies: Sequence[str], options: ReplayOptions) -> list[Report]:
    """The same workload under each policy, fresh caches each time."""
    return [Replay(workload, policy, options).run() for policy in policies]


def table(reports: Sequence[Report]) -> str:
    """Aligned text, one line a policy."""
    head = (
        f"{'policy':<18}{'requests':>9}{'hit':>7}{'TTFT mean':>11}{'p50':>8}{'p90':>8}{'p99':>8}"
        f"{'E2E mean':>10}{'TPOT ms':>9}{'max/mean':>9}{'failed':>8}"
    )
    lines = [head]
    for report in reports:
        ttft = report.ttft
        lines.append(
            f"{report.policy:<18}{report.requests:>9}{report.hit:>7.1%}{ttft.mean:>11.3f}"
            f"{ttft.p50:>8.3f}{ttft.p90:>8.3f}{ttft.p99:>8.3f}{report.e2e.mean:>10.2f}"
            f"{report.tpot_ms:>9.1f}{report.imbalance:>9.2f}{report.failed:>8}"
        )
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane replay`."""
    add = parser.add_argument
    add("workload", help=f"trace file, or built-in profile: {', '.join(PROFILES)}")
    add(
        "--policy",
        action="append",
        default=[],
        help="policy to run, may be repeated (default: default, least-requests, round-robin)",
    )
    add("--replicas", type=int, default=4)
    add("--gpu", default=DEFAULT_PRESET, choices=sorted(PRESETS), help="timing preset")
    add("--kv-tokens", type=int, default=0, help="KV cache of one replica (default: the preset's)")
    add("--sessions", type=int, default=0, help="first sessions only (built-in: how many, 200)")
    add("--requests", type=int, default=0, help="stop taking sessions after this many requests")
    add("--rate", type=float, default=1.0, help="sessions start this many times faster")
    add("--think-cap", type=float, default=120.0, metavar="S", help="longest think time")
    add("--seed", type=int, default=1)


def workload_from(name: str, sessions: int, requests: int, seed: int) -> Workload:
    """A trace file or a built-in profile, cut to size. TraceError when it cannot be read."""
    if name in PROFILES:
        return cut(generate(name, sessions or 200, seed), requests=requests)
    return cut(load(Path(name), seed=seed), sessions=sessions, requests=requests)


def run(args: argparse.Namespace) -> int:
    """Print the table. Exit status 2 on bad input."""
    try:
        if args.replicas < 1 or args.rate <= 0 or args.kv_tokens < 0:
            raise TraceError("--replicas and --rate must be above 0, --kv-tokens not below")
        workload = workload_from(args.workload, args.sessions, args.requests, args.seed)
        options = ReplayOptions(
            replicas=args.replicas,
            timing=PRESETS[args.gpu],
            kv_tokens=args.kv_tokens,
            rate=args.rate,
            think_cap_s=args.think_cap,
            seed=args.seed,
        )
        policies = args.policy or ["default", "least-requests", "round-robin"]
        reports = compare(workload, policies, options)
    except (TraceError, RouterError) as error:
        print(f"warmlane replay: {error}", file=sys.stderr)
        return 2
    print(
        f"{workload.name}: {workload.requests} requests in {len(workload.sessions)} sessions "
        f"({workload.note}); {args.replicas} x {args.gpu}; times in seconds of the replicas"
    )
    print(table(reports))
    return 0
