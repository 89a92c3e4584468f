"""The router without a network: what the library, the proxy, the simulation and most tests use.

Floor 4: synchronous, reads no clock, no environment and no chance of its own; time and randomness
come in as arguments. One owner thread. It never awaits and never logs a prompt.

    router = Router(config)
    decision = router.decide(request, now, rand)      # work is reserved on decision.choices[0]
    router.sent(decision.ticket, decision.choices[0], now)
    router.first_token(decision.ticket, now)
    router.close(decision.ticket, Outcome(), now)     # exactly once, also on error
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from warmlane._core.ledger import TICKET_BITS
from warmlane.router.admission import Gate
from warmlane.router.admission_line import Told, Waiting
from warmlane.router.catalog import Catalog, Target
from warmlane.router.config import Config, PoolConfig
from warmlane.router.config_load import checked
from warmlane.router.explain import Explanation, explain
from warmlane.router.lane import Lane, Prepared
from warmlane.router.lane_closed import ClosedLane
from warmlane.router.lane_exact import ExactLane
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool, Replica
from warmlane.router.prefix import prefix_key
from warmlane.router.registry import Parts, build_parts
from warmlane.router.types import (
    Decision,
    JsonObject,
    Kind,
    Outcome,
    ReplicaState,
    Request,
    Rest,
)
from warmlane.router.zones import ZonePairs

# Golden-ratio steps spread successive numbers evenly over 64 bits: ties are broken fairly where
# the caller brings no randomness.
_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15
_MASK64: Final = (1 << 64) - 1


class Route:
    """One routed request of the library, inside `with router.route(...)`.

    decision: what was chosen.  replica, endpoint, url: where to send it.
    """

    __slots__ = ("_router", "decision", "outcome", "replica")

    def __init__(self, router: Router, decision: Decision, replica: Replica) -> None:
        self._router = router
        self.decision = decision
        self.replica = replica
        self.outcome = Outcome()

    @property
    def endpoint(self) -> str:
        return self.replica.endpoint

    @property
    def url(self) -> str:
        return self.replica.spec.url

    @property
    def hit_tokens(self) -> int:
        """Prompt tokens that the chosen replica is believed to hold."""
        return self.decision.hit_tokens[0]

    @property
    def choices(self) -> list[Replica]:
        """All choices, best first; the later ones are for retries."""
        replicas = self._router.pools[self.decision.pool].replicas
        return [each for slot in self.decision.choices if (each := replicas[slot]) is not None]

    def moved(self, replica: Replica, now: float | None = None) -> None:
        """It is sent to another replica after all."""
        self.replica = replica
        self._router.sent(self.decision.ticket, replica.slot, self._router.clock(now))

    def first_token(self, now: float | None = None) -> None:
        """The first token arrived: the replica's prefill is done."""
        self._router.first_token(self.decision.ticket, self._router.clock(now))

    def finish(self, outcome: Outcome) -> None:
        """What the answer told (usage, text); told to the router when the block ends."""
        self.outcome = outcome


class Router:
    """Cache-aware choice among replicas.

    clock: used by `route` alone, where a call brings no `now`; without it times are 0 there, no
        latency is measured, and forgotten tickets never age.
    joining: new replicas start JOINING and wait for a probe (the running router) instead of READY.
    Raises ConfigError when a part of the config cannot be built.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], float] | None = None,
        joining: bool = False,
    ) -> None:
        config = checked(config)
        self.config = config
        self.metrics = Metrics()
        self.pools: dict[str, Pool] = {}
        self.lanes: dict[str, Lane] = {}
        requests, hits = self.metrics.requests, self.metrics.hits
        self.zones = self.metrics.zones = ZonePairs(requests, hits, self.pools, config.zone)
        self._clock = clock
        self._turn = 0
        # Called when `release` has something to do: somebody waits, and room may have come up.
        self.wake: Callable[[], None] = _nobody
        # By the high bits of tickets, which are never used again: a lane that a reload took away
        # stays until its last ticket is closed.
        self._by_number: list[Lane | ClosedLane] = []
        self._leaving: list[Lane] = []
        self._initial = ReplicaState.JOINING if joining else ReplicaState.READY
        for number, pool_config in enumerate(config.pools):
            self._open(self._lane(config, pool_config, f"pools[{number}]", number))
        self.catalog = Catalog(config, self.pools)

    def _lane(self, config: Config, pool_config: PoolConfig, where: str, number: int) -> Lane:
        """A lane for a pool that is new, with its static replicas. ConfigError."""
        parts = build_parts(pool_config, where)
        stale_s = config.scrape.stale_s
        pool = Pool(pool_config, config.limits, stale_s=stale_s, initial=self._initial)
        kind = Lane if pool_config.kv_events == "off" else ExactLane
        lane = kind(number, pool, parts, config, self.metrics)
        if config.admission.enabled:
            self._guard(lane, config)
        for spec in pool_config.replicas:
            pool.add(spec, 0.0)
        return lane

    def _guard(self, lane: Lane, config: Config) -> None:
        lane.gate = Gate(lane, config.admission, self.metrics, self._stirred)

    def _open(self, lane: Lane) -> None:
        self._by_number.append(lane)
        self.pools[lane.pool.name] = lane.pool
        self.lanes[lane.pool.name] = lane

    def reload(self, config: Config, now: float | None = None) -> list[Pool]:
        """Follow pools, model names, zone, parts and admission of a new config; the pools gone.

        A pool that stays keeps its replicas, view and tickets; its parts are built anew where they
        changed. One that is gone gets no more requests, and its tickets are served to their end.
        `limits`, `index` and `tokens` of pools that stay are not followed. ConfigError: nothing
        changed. Membership of the pools that stay is the feeds' business.
        """
        config = checked(config)
        new: list[Lane] = []
        parts: dict[str, Parts] = {}
        for i, pool_config in enumerate(config.pools):
            lane, where = self.lanes.get(pool_config.name), f"pools[{i}]"
            if lane is None:
                number = len(self._by_number) + len(new)
                new.append(self._lane(config, pool_config, where, number))
            elif config.zone != self.config.zone or lane.needs_parts(pool_config):
                parts[pool_config.name] = build_parts(pool_config, where)
        # From here on nothing can fail.
        self.zones.follow(config.zone)
        for pool_config in config.pools:
            lane = self.lanes.get(pool_config.name)
            if lane is not None:
                lane.follow(pool_config, parts.get(pool_config.name), config.zone)
        names = [pool_config.name for pool_config in config.pools]
        gone = [lane for name, lane in self.lanes.items() if name not in names]
        for lane in gone:
            if lane.gate is not None:
                lane.gate.close()
        self._leaving += gone
        for lane in new:
            self._open(lane)
            self.catalog.watch(lane.pool)
        lanes = {name: self.lanes[name] for name in names}  # the order of the config
        self.lanes.clear()
        self.lanes.update(lanes)
        self.pools.clear()
        self.pools.update((name, lane.pool) for name, lane in lanes.items())
        before, self.config = self.config, config
        self.catalog.follow(config)
        if config.admission != before.admission:  # last: who waits may go within it
            for lane in lanes.values():
                self._admit(lane, config, self.clock(now))
        return [lane.pool for lane in gone]

    def _admit(self, lane: Lane, config: Config, now: float) -> None:
        """Other admission for a pool. A gate stays with its lane, also when it is off: its sessions
        and open tickets come to their end there."""
        if lane.gate is not None:
            lane.gate.follow(config.admission, now)
        elif config.admission.enabled:
            self._guard(lane, config)

    def prepare(self, request: Request, rand: int = 0) -> Prepared:
        """Model name to pool, and the prefix key. Raises RequestError 404 `model_not_found`."""
        target = self.catalog.resolve(request, rand)
        if request.objective:
            importance = self.catalog.importance(target.pool, request.objective)
            if importance is not None:  # higher is more important there, lower is earlier here
                request = msgspec.structs.replace(request, priority=-importance)
        index = self.config.index
        key = prefix_key(
            request,
            target.model,
            target.adapter,
            block_bytes=index.block_bytes,
            block_tokens=index.block_tokens,
        )
        return Prepared(request, target, self.lanes[target.pool], key)

    def decide(self, request: Request, now: float, rand: int) -> Decision:
        """Choose replicas and reserve the work on the first. Raises NoReplica, RequestError.

        With admission a request that would have to wait is refused (429): see `ask`.
        """
        decision = self.ask(request, now, rand, None)
        assert isinstance(decision, Decision), "who is not told does not wait"
        return decision

    def ask(
        self, request: Request, now: float, rand: int, told: Told | None, size: int = 0
    ) -> Decision | Waiting:
        """As `decide`, but past saturation the request may wait: `told` hears the end of it.

        That is a Decision, or the error in place of one, and comes from `release` or `maintain`,
        exactly once. size: bytes that it keeps in memory meanwhile. Raises NoReplica,
        RequestError.
        """
        return self.ask_prepared(self.prepare(request, rand), now, rand, told, size)

    def ask_prepared(
        self, prepared: Prepared, now: float, rand: int, told: Told | None, size: int = 0
    ) -> Decision | Waiting:
        """The second half of `ask`."""
        gate = prepared.lane.gate
        if gate is None or not gate.active:
            return prepared.lane.decide(prepared, now, rand)
        return gate.offer(prepared, now, rand, told, size)

    def _stirred(self) -> None:
        self.wake()

    def release(self, now: float) -> None:
        """Let those go who wait and may; to be called soon after `Gate.wake`."""
        for lane in self._by_number:
            if lane.gate is not None and lane.gate.queue:
                lane.gate.release(now)

    def decide_prepared(self, prepared: Prepared, now: float, rand: int) -> Decision:
        """The second half of `decide`, for a caller that prepared early or asks again."""
        return prepared.lane.decide(prepared, now, rand)

    def sent(self, ticket: int, slot: int, now: float) -> None:
        """The request's bytes went to `slot`: its prefix is expected there from now on."""
        self._by_number[ticket >> TICKET_BITS].sent(ticket, slot, now)

    def moved(self, ticket: int, slot: int, now: float) -> None:
        """A retry: the reserved work moves to `slot`."""
        self._by_number[ticket >> TICKET_BITS].moved(ticket, slot, now)

    def rest(
        self,
        ticket: int,
        now: float,
        ready_only: bool = False,
        avoid: frozenset[str] = frozenset(),
        tried: frozenset[int] = frozenset(),
    ) -> tuple[int, ...]:
        """Further slots for a request whose choices all failed, best first; see `Decider.rest`.

        Choices may be among them. () when the ticket is closed.
        """
        wanted = Rest(ready_only, avoid, tried)
        return self._by_number[ticket >> TICKET_BITS].rest(ticket, now, wanted)

    def first_token(self, ticket: int, now: float) -> float:
        """Prefill is done: its work is released. Seconds since `decide`, -1 when repeated."""
        lane = self._by_number[ticket >> TICKET_BITS]
        lane.learn_pace(ticket, now)
        return lane.first_token(ticket, now)

    def progress(self, ticket: int, output_tokens: int) -> None:
        """`output_tokens` generated so far in all."""
        self._by_number[ticket >> TICKET_BITS].progress(ticket, output_tokens)

    def close(self, ticket: int, outcome: Outcome, now: float) -> bool:
        """The end, exactly once, also on error and cancel. False: it was closed before."""
        return self._by_number[ticket >> TICKET_BITS].close(ticket, outcome, now)

    def explain(self, request: Request, now: float, rand: int = 0) -> Explanation:
        """The decision that would be made now, with everything that led to it. Reserves nothing."""
        return explain(self.prepare(request, rand), now, rand)

    def lane_of(self, ticket: int) -> Lane | None:
        """The lane that decided this ticket; None: its pool is gone, and all of its tickets."""
        lane = self._by_number[ticket >> TICKET_BITS]
        return lane if isinstance(lane, Lane) else None

    def fixed_target(self, name: bytes) -> tuple[str, Target] | None:
        """A model's name, and where every request for it goes until a pool changes.

        None: that depends on the request, or the bytes are no name.
        """
        try:
            model = name.decode()
        except UnicodeDecodeError:
            return None
        target = self.catalog.fixed(model)
        return None if target is None else (model, target)

    def models(self) -> list[JsonObject]:
        """Merged entries for /v1/models."""
        return self.catalog.models()

    def maintain(self, now: float, budget_us: int = 1000) -> bool:
        """Background work of all pools, at most about `budget_us` each; True while some remains.

        To be called every second or so, and again soon while it returns True.
        """
        older_than = now - self.config.timeouts.ticket_s
        remains = False
        for lane in self._by_number:
            remains = lane.maintain(now, older_than, budget_us) or remains
        for leaving in [lane for lane in self._leaving if not lane.open_tickets]:
            self._leaving.remove(leaving)
            self._by_number[leaving.number] = ClosedLane()
        return remains

    @property
    def open_tickets(self) -> int:
        """Tickets of all pools that nobody closed yet."""
        return sum(lane.open_tickets for lane in self._by_number)

    def clock(self, now: float | None = None) -> float:
        """`now`, or else the clock given at construction, or else 0."""
        if now is not None:
            return now
        return self._clock() if self._clock is not None else 0.0

    @contextmanager
    def route(
        self,
        request: Request | None = None,
        *,
        model: str = "",
        prompt: str | bytes | None = None,
        tokens: array[int] | list[int] | None = None,
        session: str = "",
        now: float | None = None,
        rand: int | None = None,
    ) -> Iterator[Route]:
        """Route one request: the ticket is open inside the block and closed with it.

        Give a `Request`, or a model with `prompt` or token ids. The work counts as sent to the
        first choice at once; `Route.moved` corrects that. An exception closes it as "error" and
        goes on. Raises NoReplica, RequestError.
        """
        if request is None:
            text = prompt.encode() if isinstance(prompt, str) else prompt
            packed = None if tokens is None else array("I", tokens).tobytes()
            request = Request(
                kind=Kind.COMPLETIONS, model=model, prompt=text, tokens=packed, session=session
            )
        if rand is None:
            self._turn += 1
            rand = self._turn * _GOLDEN & _MASK64
        began = self.clock(now)
        decision = self.decide(request, began, rand)
        slot = decision.choices[0]
        replica = self.pools[decision.pool].replicas[slot]
        assert replica is not None, "a decision names members only"
        self.sent(decision.ticket, slot, began)
        route = Route(self, decision, replica)
        try:
            yield route
        except BaseException:
            self.close(decision.ticket, Outcome(status="error"), self.clock(now))
            raise
        self.close(decision.ticket, route.outcome, self.clock(now))


def _nobody() -> None:
    """Nobody listens yet: `maintain` releases."""
