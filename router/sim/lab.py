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
from warmlane.router.admission_line import Waiting
from warmlane.router.config import Config, Index, PoolConfig
from warmlane.router.errors import NoReplica, RouterError
from warmlane.router.lane import Prepared
from warmlane.router.prefix import PrefixKey
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.lab_routers import Doors, Seat, seats
from warmlane.router.sim.lab_run import Done, LabOptions, Run
from warmlane.router.sim.lab_world import (
    BLOCK_TOKENS,
    TIER_WORTH,
    CacheView,
    Change,
    constants,
    specs,
)
from warmlane.router.sim.traces import Session, Workload
from warmlane.router.types import (
    Decision,
    Kind,
    LoadSnapshot,
    Outcome,
    ReplicaState,
    Request,
)

HEAD_BLOCKS = 64  # block keys that stand for the prompt's head, for policies that hash it
MODEL = "model"
POOL = "lab"


class _Live:
    """A request on its way."""

    __slots__ = (
        *("arrived", "away", "first", "hit", "index", "keys", "seat", "session", "slot"),
        "ticket",
    )

    def __init__(self, session: Session, index: int, arrived: float, seat: Seat) -> None:
        self.session = session
        self.seat = seat
        self.index = index
        self.arrived = arrived
        self.first = -1.0
        self.ticket = -1
        self.slot = -1
        self.hit = 0
        self.away = False
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
        if options.tier_told:
            pool = msgspec.structs.replace(pool, tier_tokens=options.tier_tokens)
        view = "approximate" if options.view == "exact" else options.view
        index = Index(block_tokens=BLOCK_TOKENS, view=view, max_bytes=0)  # type: ignore[arg-type]
        exact = options.view == "exact"
        config = Config(pools=[pool], index=index, admission=options.admission)
        self.seats = seats(
            config, options.routers, options.share_s, prefixes=not exact, zones=options.zones
        )
        self._doors = Doors(self.seats, self._chance)
        self.blocks = [
            max(2, (options.kv_tokens or timing.kv_tokens) // BLOCK_TOKENS) for timing in fleet
        ]
        late = exact and options.view_lag_s > 0.0
        self.fleet = Fleet(
            [
                constants(timing, blocks, options.tier_tokens, decodes)
                for timing, blocks, decodes in zip(
                    fleet, self.blocks, options.decodes or (1.0,) * len(fleet), strict=True
                )
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
        self._stirred: list[Seat] = []
        for seat in self.seats:
            seat.router.wake = partial(self._stirred.append, seat)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._live: dict[int, _Live] = {}
        self._ids = count(1)
        self._open = 0
        self._begun = 0
        self._done: list[Done] = []
        self._failed = self._skipped = self._fallbacks = self._refused = self._queued = 0

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
                if self._stirred:
                    self._release(fleet.now)
                if events and events[0][0] < limit:
                    limit = events[0][0]
            if not events:
                break
            now, _, call = heapq.heappop(events)
            self._caches.now = now
            call(now)
        counters = [fleet.counters(slot) for slot in range(len(fleet))]
        return Run(
            policy=self.policy,
            done=self._done,
            failed=self._failed,
            skipped=self._skipped,
            fallbacks=self._fallbacks,
            refused=self._refused,
            queued=self._queued,
            busy_s=[each["busy_s"] for each in counters],
            preemptions=int(sum(each["preemptions"] for each in counters)),
            makespan_s=fleet.now,
            zones=len(set(self.options.zones)) > 1,
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
        live = _Live(session, index, now, self._doors.seat(session.name))
        live.keys = block_keys(turn.runs, self._ratio, turn.prompt // BLOCK_TOKENS)
        self._send(live, now)

    def _send(self, live: _Live, now: float) -> None:
        turn = live.session.turns[live.index]
        request = Request(
            kind=Kind.COMPLETIONS,
            model=MODEL,
            max_tokens=turn.output,
            stream=True,
            session=live.session.name if self.options.named else "",
            tokens=live.keys[:HEAD_BLOCKS].tobytes(),
        )
        key = PrefixKey(live.keys, "tokens", turn.prompt, BLOCK_TOKENS, 1)  # type: ignore[arg-type]
        seat = live.seat
        prepared = Prepared(request, seat.prepared.target, seat.lane, key)
        self._caches.now = now
        if seat.fresh_s and now >= seat.fresh_at:
            self._refresh(seat, now)
        for each in seat.watchers:
            each.asks(live.keys)
        told = partial(self._told, live)
        try:
            found = seat.router.ask_prepared(prepared, now, self._chance.bits(), told)
        except NoReplica as error:
            self._refuse(live, error, now)
            return
        if isinstance(found, Waiting):
            self._queued += 1
        else:
            self._go(live, found, now)

    def _told(self, live: _Live, what: Decision | RouterError) -> None:
        """A request that waited goes, or is refused."""
        if isinstance(what, Decision):
            self._go(live, what, self._caches.now)
        else:
            assert isinstance(what, NoReplica), "what else can a decision raise"
            self._refuse(live, what, self._caches.now)

    def _refuse(self, live: _Live, error: NoReplica, now: float) -> None:
        """Its client asks again, or gives up, and with it its session."""
        again = now + (error.retry_after_s or 1.0)
        self._refused += 1
        if error.status == 429 and again <= live.arrived + self.options.patience_s:
            self._at(again, partial(self._send, live))
            return
        self._failed += 1
        self._open -= 1

    def _release(self, now: float) -> None:
        """Replicas have room again: those go who waited for it."""
        self._caches.now = now
        for seat in self._stirred:
            seat.router.release(now)
        self._stirred.clear()

    def _go(self, live: _Live, decision: Decision, now: float) -> None:
        """It is sent."""
        seat = live.seat
        live.ticket, live.slot = decision.ticket, decision.choices[0]
        self._fallbacks += bool(decision.fallback)
        live.hit = decision.hit_tokens[0]
        for each in seat.watchers:
            each.began(live.slot, live.keys)
        seat.router.sent(live.ticket, live.slot, now)
        zones = self.options.zones
        live.away = bool(zones) and zones[live.slot % len(zones)] != seat.zone
        away_s = self.options.cross_zone_s if live.away else 0.0
        self._at(now + self.options.front_s + away_s, partial(self._enter, live))

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

    def _ended(self, live: _Live) -> None:
        for each in live.seat.watchers:
            each.ended(live.slot, live.keys)

    def _finish(self, live: _Live, cached: int, now: float) -> None:
        turn = live.session.turns[live.index]
        self._ended(live)
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
                live.away,
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
        """What a policy that scrapes for itself sees: queue and KV use, at most fresh_s old."""
        seat.fresh_at = now + seat.fresh_s
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
            self._ended(live)
            live.seat.router.close(live.ticket, Outcome(status="error"), now)
            self._send(live, now)
