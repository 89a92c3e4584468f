"""One run of the lab: a workload, a policy and a fleet of modelled replicas on a virtual clock.

The router is `core.Router`, fed as the faces feed it: decide, sent, first token, close with the
usage of the answer, and the scrapes of the replicas' load. The replicas are the compiled step loop
(`_core.engine_step`). So policies meet the same requests, and hours of traffic take seconds. A run
is a pure function of its arguments.

The router is given the block keys of the trace in place of a prompt's text; what a real one spends
on parsing and hashing does not exist here. Cost: about 60 us of CPU a request.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable
from functools import partial
from itertools import count

import msgspec

from warmlane._core.engine_step import Fleet, block_keys
from warmlane.router.config import Config, Index, PoolConfig
from warmlane.router.errors import NoReplica
from warmlane.router.lane import Prepared
from warmlane.router.prefix import PrefixKey
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.lab_routers import Seat, seats
from warmlane.router.sim.lab_world import (
    BLOCK_TOKENS,
    TIER_WORTH,
    CacheView,
    Change,
    constants,
    specs,
)
from warmlane.router.sim.timing import DEFAULT_PRESET, PRESETS, Timing
from warmlane.router.sim.traces import Session, Workload
from warmlane.router.types import Kind, LoadSnapshot, Outcome, ReplicaState, Request

FRONT_S = 0.0156  # HTTP and tokenizer before the engine (inference-sim's fit of vLLM)
HEAD_BLOCKS = 64  # block keys that stand for the prompt's head, for policies that hash it
MODEL = "model"
POOL = "lab"


class LabOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Fleet and pacing.

    fleet: timing of each replica. speeds: factor by which each really is faster, not told to the
    router ([]: 1). kv_tokens: KV cache of each, 0: the preset's. rate: arrivals come that many
    times faster. view: what the router knows of the caches. kv_scale: the router's belief of the
    cache size over the truth. scrape_s: between two scrapes; view_lag_s: by which cache events are
    late (exact view). tier_tokens: host memory behind each KV cache. zones: of the replicas, in
    turn; the routers are in the first one, and a request to another one is cross_zone_s longer
    under way. routers: that many before one fleet, each request through one of them by chance.
    share_s: time between two messages of one, 0: they know nothing of each other; a message is
    under way for share_lag_s.
    """

    fleet: tuple[Timing, ...] = (PRESETS[DEFAULT_PRESET],) * 4
    speeds: tuple[float, ...] = ()
    kv_tokens: int = 0
    rate: float = 1.0
    think_cap_s: float = 120.0
    max_prompt: int = 131_072
    view: str = "approximate"
    kv_scale: float = 1.0
    scrape_s: float = 1.0
    seed: int = 1
    changes: tuple[Change, ...] = ()
    view_lag_s: float = 0.0
    tier_tokens: int = 0
    zones: tuple[str, ...] = ()
    cross_zone_s: float = 0.002
    routers: int = 1
    share_s: float = 0.05
    share_lag_s: float = 0.002


class Done(msgspec.Struct, frozen=True, gc=False):
    """One answered request; times in seconds, lengths in tokens."""

    at: float
    ttft: float
    e2e: float
    prompt: int
    cached: int
    output: int
    predicted: int
    slot: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What a run brought. fallbacks: decisions for which the policy's own advice failed.
    tier_hits: tokens loaded from the slower tier (all requests).
    """

    policy: str
    done: list[Done]
    failed: int
    skipped: int
    fallbacks: int
    busy_s: list[float]
    preemptions: int
    makespan_s: float
    tier_hits: int = 0


class _Live:
    """A request on its way."""

    __slots__ = ("arrived", "first", "hit", "index", "keys", "seat", "session", "slot", "ticket")

    def __init__(self, session: Session, index: int, arrived: float, seat: Seat) -> None:
        self.session = session
        self.seat = seat
        self.index = index
        self.arrived = arrived
        self.first = -1.0
        self.ticket = -1
        self.slot = -1
        self.hit = 0
        self.keys = array("Q")


class Lab:
    """One run of one policy. `run` may be called once.

    pool: what the config of the pool holds besides its replicas (policy, scorers, picker).
    progress: called with the share of sessions that have begun, now and then.
    """

    def __init__(
        self,
        workload: Workload,
        pool: PoolConfig,
        options: LabOptions,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.workload = workload
        self.options = options
        self._progress = progress
        self._ratio = workload.block_size // BLOCK_TOKENS
        self._chance = Chance(options.seed)
        fleet = options.fleet
        replicas = specs(len(fleet), options.zones)
        pool = msgspec.structs.replace(pool, name=POOL, models=[MODEL], replicas=replicas)
        self.policy = pool.policy
        view = "approximate" if options.view == "exact" else options.view
        index = Index(block_tokens=BLOCK_TOKENS, view=view, max_bytes=0)  # type: ignore[arg-type]
        exact = options.view == "exact"
        zone = options.zones[0] if options.zones else ""
        config = Config(pools=[pool], index=index, zone=zone)
        self.seats = seats(config, options.routers, options.share_s, prefixes=not exact)
        self.blocks = [
            max(2, (options.kv_tokens or timing.kv_tokens) // BLOCK_TOKENS) for timing in fleet
        ]
        late = exact and options.view_lag_s > 0.0
        self.fleet = Fleet(
            [
                constants(timing, blocks, options.tier_tokens)
                for timing, blocks in zip(fleet, self.blocks, strict=True)
            ],
            record=late,
        )
        for slot, factor in enumerate(options.speeds):
            self.fleet.set_speed(slot, factor)
        self._caches = CacheView(self.fleet, options.view_lag_s if late else 0.0, TIER_WORTH)
        for seat in self.seats:
            if exact:
                seat.lane.view.blocks_of = self._caches.look  # type: ignore[method-assign]
            for change in options.changes:
                if change.what == "join":
                    seat.pool.set_state(change.slot, ReplicaState.JOINING)
        scorers = [each.scorer for each in self.seats[0].lane.decider.parts.scorers]
        self._fresh_s = max((getattr(each, "scrape_s", 0.0) for each in scorers), default=0.0)
        self._fresh_at = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._live: dict[int, _Live] = {}
        self._ids = count(1)
        self._open = 0
        self._begun = 0
        self._done: list[Done] = []
        self._failed = self._skipped = self._fallbacks = 0

    def run(self) -> Run:
        """Play to the end."""
        sessions = self.workload.sessions
        first = min((session.start_s for session in sessions), default=0.0)
        for session in sessions:
            self._open += 1
            at = (session.start_s - first) / self.options.rate
            self._at(at, partial(self._arrive, session, 0))
        for change in self.options.changes:
            self._at(change.at_s, partial(self._change, change))
        for seat in self.seats:
            self._at(
                seat.number * self.options.scrape_s / len(self.seats), partial(self._scrape, seat)
            )
            if seat.sharer is not None:
                first_s = (seat.number + 1) * self.options.share_s / len(self.seats)
                self._at(first_s, partial(self._tell, seat))
        fleet, events = self.fleet, self._events
        while self._open:
            limit = events[0][0] if events else float("inf")
            while fleet.advance(limit):
                self._noticed(fleet.slot, fleet.now)
                if events and events[0][0] < limit:
                    limit = events[0][0]
            if not events:
                break
            now, _, call = heapq.heappop(events)
            call(now)
        counters = [fleet.counters(slot) for slot in range(len(fleet))]
        return Run(
            policy=self.policy,
            done=self._done,
            failed=self._failed,
            skipped=self._skipped,
            fallbacks=self._fallbacks,
            busy_s=[each["busy_s"] for each in counters],
            preemptions=int(sum(each["preemptions"] for each in counters)),
            makespan_s=fleet.now,
            tier_hits=int(sum(each["tier_hits"] for each in counters)),
        )

    def _at(self, when: float, call: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), call))

    def _arrive(self, session: Session, index: int, now: float) -> None:
        """A turn is sent; one that no replica can hold is skipped with the rest of its session."""
        turn = session.turns[index]
        if index == 0:
            self._begun += 1
            if self._progress is not None and self._begun % 64 == 0:
                self._progress(self._begun / len(self.workload.sessions))
        limit = min(self.options.max_prompt, (min(self.blocks) - 1) * BLOCK_TOKENS)
        if turn.prompt + turn.output > limit:
            self._skipped += 1
            self._open -= 1
            return
        live = _Live(session, index, now, self._seat())
        live.keys = block_keys(turn.runs, self._ratio, turn.prompt // BLOCK_TOKENS)
        self._send(live, now)

    def _send(self, live: _Live, now: float) -> None:
        turn = live.session.turns[live.index]
        request = Request(
            kind=Kind.COMPLETIONS,
            model=MODEL,
            max_tokens=turn.output,
            stream=True,
            session=live.session.name,
            tokens=live.keys[:HEAD_BLOCKS].tobytes(),
        )
        key = PrefixKey(live.keys, "tokens", turn.prompt, BLOCK_TOKENS, 1)  # type: ignore[arg-type]
        seat = live.seat
        prepared = Prepared(request, seat.prepared.target, seat.lane, key)
        self._caches.now = now
        if self._fresh_s and now >= self._fresh_at:
            self._refresh(seat, now)
        try:
            decision = seat.router.decide_prepared(prepared, now, self._chance.bits())
        except NoReplica:
            self._failed += 1
            self._open -= 1
            return
        live.ticket, live.slot = decision.ticket, decision.choices[0]
        self._fallbacks += bool(decision.fallback)
        live.hit = decision.hit_tokens[0]
        seat.router.sent(live.ticket, live.slot, now)
        zones, away_s = self.options.zones, 0.0
        if zones and zones[live.slot % len(zones)] != zones[0]:
            away_s = self.options.cross_zone_s
        self._at(now + FRONT_S + away_s, partial(self._enter, live))

    def _enter(self, live: _Live, now: float) -> None:
        turn = live.session.turns[live.index]
        number = next(self._ids)
        self._live[number] = live
        self.fleet.add(live.slot, number, turn.prompt, turn.output, live.keys, now)

    def _noticed(self, slot: int, now: float) -> None:
        self._caches.heard(slot, now)
        live_of = self._live
        for number in self.fleet.first_tokens:
            live = live_of[number]
            live.first = now
            live.seat.router.first_token(live.ticket, now)
        for number, cached in self.fleet.finished:
            self._finish(live_of.pop(number), cached, now)

    def _finish(self, live: _Live, cached: int, now: float) -> None:
        turn = live.session.turns[live.index]
        self._done.append(
            Done(
                live.arrived,
                live.first - live.arrived,
                now - live.arrived,
                turn.prompt,
                cached,
                turn.output,
                live.hit,
                live.slot,
            )
        )
        outcome = Outcome(
            prompt_tokens=turn.prompt, cached_tokens=cached, output_tokens=turn.output
        )
        live.seat.router.close(live.ticket, outcome, now)
        index = live.index + 1
        if index == len(live.session.turns):
            self._open -= 1
            return
        think_s = min(live.session.turns[index].think_s, self.options.think_cap_s)
        self._at(now + think_s, partial(self._arrive, live.session, index))

    def _seat(self) -> Seat:
        """The router of the next request."""
        many = len(self.seats)
        return self.seats[0] if many == 1 else self.seats[self._chance.bits() % many]

    def _tell(self, seat: Seat, now: float) -> None:
        """A message of one router to all others."""
        assert seat.sharer is not None, "asked for"
        data = seat.sharer.tell(now)
        for other in self.seats:
            if other is not seat and other.sharer is not None:
                self._at(now + self.options.share_lag_s, partial(other.sharer.hear, data))
        if self._open:
            self._at(now + self.options.share_s, partial(self._tell, seat))

    def _refresh(self, seat: Seat, now: float) -> None:
        """What a policy that scrapes for itself sees: queue and KV use, at most _fresh_s old."""
        self._fresh_at = now + self._fresh_s
        for slot, replica in enumerate(seat.pool.replicas):
            waiting, running, usage = self.fleet.load(slot)
            seat.pool.kv_usage[slot] = usage
            if replica is not None and replica.load is not None:
                replica.load = msgspec.structs.replace(
                    replica.load, waiting=waiting, running=running, kv_usage=usage
                )

    def _scrape(self, seat: Seat, now: float) -> None:
        """What a scrape of the replicas' metrics would tell, and maintenance."""
        scale = self.options.kv_scale
        for slot in range(len(self.fleet)):
            waiting, running, usage = self.fleet.load(slot)
            counters = self.fleet.counters(slot)
            seat.pool.update_load(
                slot,
                LoadSnapshot(
                    taken_at=now,
                    waiting=waiting,
                    running=running,
                    kv_usage=usage,
                    block_size=BLOCK_TOKENS,
                    num_blocks=max(1, int(self.blocks[slot] * scale)),
                    prefix_queries=counters["prefix_queries"],
                    prefix_hits=counters["prefix_hits"],
                ),
            )
        seat.maintain(now, 1 if seat.sharer is not None else len(self.seats))
        if self._open:
            self._at(now + self.options.scrape_s, partial(self._scrape, seat))

    def _change(self, change: Change, now: float) -> None:
        if change.what == "slow":
            self.fleet.set_speed(change.slot, change.factor)
            return
        if change.what == "join":
            for seat in self.seats:
                seat.pool.set_state(change.slot, ReplicaState.READY)
            return
        self._caches.failed(change.slot)
        for number in self.fleet.fail(change.slot):
            live = self._live.pop(number)
            live.seat.router.close(live.ticket, Outcome(status="error"), now)
            self._send(live, now)
