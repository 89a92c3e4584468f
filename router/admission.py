"""Past saturation: who goes on, who waits in the router, who is refused. Sans-I/O, floor 4.

One `Gate` a pool. While a replica has room nothing waits, and `active` is False: then a face asks
nothing here. Past that a request goes through `offer`, which lets it go, keeps it until it may go,
or refuses it; its replica is chosen when it goes, not when it comes. It waits

    for room     in a replica, in the order of `admission_queue`
    for memory   when it opens a session while the contexts of live sessions exceed the caches and
                 continued ones are being lost from them (`admission_sessions`)
    for anybody  while no replica is ready

Every wait is bounded in number, bytes and time. A face calls `release` when it was woken, and the
router's maintenance calls `tick`. Never raises out of those; `told` hears each end exactly once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any, Final

from warmlane._core.ledger import TICKET_BITS
from warmlane.router.admission_line import Told, Waiting, WaitingLine
from warmlane.router.admission_load import PoolLoad
from warmlane.router.admission_queue import Item
from warmlane.router.admission_sessions import Session, Sessions
from warmlane.router.config_admission import Admission
from warmlane.router.errors import NoReplica, RouterError
from warmlane.router.metrics import Metrics
from warmlane.router.types import Decision, Outcome, Request

if TYPE_CHECKING:
    from warmlane.router.lane import Lane, Prepared
    from warmlane.router.pool import Replica

log = logging.getLogger("warmlane.admission")

_WATCH_S: Final = 60.0  # how long requests are looked at after the last moment without room
_WATCH_SHARE: Final = 0.25  # of the bounds: from there on they are looked at
_LEARN_S: Final = 30.0  # after so long most live sessions were seen
_LOST_SHARE: Final = 0.05  # of continued contexts that no cache held: caches are too small
_ANYWAY_S: Final = 90.0  # one session begins whatever the memory, that waited a third of it
_RATE_S: Final = 30.0  # time constant of the pace of releases
_CODES: Final = {
    "busy": "all_replicas_busy",
    "full": "queue_full",
    "late": "queue_timeout",
    "sheddable": "low_priority_shed",
}
_TICKET_MASK: Final = (1 << TICKET_BITS) - 1
_RETRY_S: Final = (1.0, 60.0)  # least and most that a client is told to wait


class Gate:
    """Admission of one pool.

    active: requests have to be offered. wake: called when `release` has something to do.
    """

    def __init__(
        self, lane: Lane, config: Admission, metrics: Metrics, wake: Callable[[], None]
    ) -> None:
        self.lane = lane
        self.metrics = metrics
        self.load = PoolLoad(lane.pool, config)
        self.sessions = Sessions(config.session_s, config.sessions)
        self.queue = WaitingLine(config)
        self.config = config
        self.active = True  # nobody is ready yet
        self.wake = wake
        self.on_active: list[Callable[[], None]] = []
        self._open: dict[int, Session] = {}  # by ticket
        self._watch_until = 0.0
        self._watched_s = 0.0
        self._looked_at = 0.0
        self.holds_sessions = False
        self._fresh_at = 0.0
        self._released = 0.0  # requests in the last seconds, decaying
        lane.pool.on_change(self._changed)

    def follow(self, config: Admission, now: float) -> None:
        """Another config, at once. Who waits keeps place and time; switched off, everybody goes."""
        self.config = config
        self.load.follow(config)
        self.sessions.follow(config.session_s, config.sessions)
        self.holds_sessions = self.holds_sessions and config.enabled and config.working_set > 0.0
        self.queue.take_over(config, config.wait_s if self.load.has_any() else config.room_s)
        if not config.enabled:
            while (item := self.queue.next(lambda _: True, now)) is not None:
                self._go(item, now)
        self.tick(now)
        self.stirred()

    # What a face asks

    def offer(
        self, prepared: Prepared, now: float, rand: int, told: Told | None, size: int
    ) -> Decision | Waiting:
        """Let it go, or keep it. told None: the caller cannot wait. Raises NoReplica."""
        request = prepared.request
        session = self.sessions.find(request.session, prepared.key)
        work = self.lane.view.lengths(prepared.key)[0]
        if session is not None:
            work = max(0.0, work - session.context)
        tenant = self.queue.tenant(request.tenant)
        item = Waiting(self, tenant, request.priority, session is None, now, work)
        item.prepared, item.session, item.rand, item.size = prepared, session, rand, size
        if session is not None:
            self.sessions.begin(session)
        try:
            return self._offer(item, now, told)
        except NoReplica:
            if session is not None:
                self.sessions.end(session, now)
            raise

    def _offer(self, item: Waiting, now: float, told: Told | None) -> Decision | Waiting:
        request = item.prepared.request
        if not self.load.has_any():
            if not self.config.room_s or told is None:
                return self._decide(item, now)
            item.until = now + self.config.room_s
        elif self.may_go(item, now):
            return self._decide(item, now)
        else:
            item.until = now + self.config.wait_s
            if self.config.shed_negative and item.level > 0:
                raise self._refusal("sheddable", "requests of this priority are not served now")
        if request.wait_s is not None:
            item.until = min(item.until, now + request.wait_s)
        if told is None:
            raise self._refusal("busy", "all replicas are busy")
        item.told = told
        self._keep(item)
        return item

    def cancel(self, item: Waiting) -> None:
        """Its client is gone: it waits no more."""
        if self.queue.remove(item):
            self._leave(item, self._looked_at)
            self._count("gone")

    def closed(self, ticket: int, request: Request, output: int | None, now: float) -> None:
        """An answer ended: its tenant is charged for what was really generated."""
        session = self._open.pop(ticket, None)
        if session is not None:
            self.sessions.end(session, now)
        if self.queue and output is not None:
            further = output - self._expected(request)
            self.queue.charge(request.tenant, self.config.output_weight * further)
        self.stirred()

    def stirred(self) -> None:
        """Room may have come up."""
        if self.queue:
            self.wake()

    # What the owner of the clock calls

    def release(self, now: float) -> None:
        """Everybody goes who may, in their order; those whose time is over are refused."""
        for item in self.queue.due(now):
            self._late(item, now)
        while self.queue and self.load.has_any() and self.load.room():
            found = self.queue.next(lambda item: self.fits(item, now), now)
            if found is None:
                return
            self._go(found, now)

    def tick(self, now: float) -> None:
        """Is the pool near saturation, and which sessions live? To be called every second or so."""
        passed = min(1.0, max(0.0, now - self._looked_at))
        self._looked_at = now
        self._released *= max(0.0, 1.0 - passed / _RATE_S)
        if self.load.has_any() and not self.load.room(_WATCH_SHARE):
            self._watch_until = now + _WATCH_S
        active = bool(self.queue) or now < self._watch_until or not self.load.has_any()
        active = active and self.config.enabled
        if active:
            self._watched_s += passed
            self.sessions.look(now)
            self._look_for_losses()
        self.release(now)
        if not active:
            self._watched_s = 0.0
            self.holds_sessions = False
            self.queue.forget()
        if len(self._open) > self.lane.open_tickets:  # some were closed by their age
            slot_of = self.lane.pool.ledger.slot_of
            for ticket in [each for each in self._open if slot_of(each) < 0]:
                self.sessions.end(self._open.pop(ticket), now)
        self._become(active)
        self._tell_gauges()

    def close(self) -> None:
        """The pool is gone: who still waits is refused."""
        error = NoReplica("the pool was taken away", retry_after_s=1.0)
        for item in self.queue.due(inf):
            self._tell(item, error)

    # For metrics and the admin interface

    def _tell_gauges(self) -> None:
        gauge, pool = self.metrics.gauge, self.lane.pool.name
        gauge("warmlane_admission_active", self.active, pool)
        gauge("warmlane_admission_waiting", len(self.queue), pool)
        gauge("warmlane_admission_waiting_bytes", self.queue.bytes, pool)
        gauge("warmlane_working_set_ratio", self.working_set, pool)

    @property
    def capacity_tokens(self) -> float:
        """KV tokens of all ready replicas; 0 where nobody tells."""
        pool = self.lane.pool
        return float(sum(pool.capacity_tokens(each) or 0 for each in pool if pool.ready[each.slot]))

    @property
    def working_set(self) -> float:
        """Contexts of live sessions over all KV caches; 0 while nobody looks."""
        capacity = self.capacity_tokens if self.active else 0.0
        return self.sessions.tokens / capacity if capacity else 0.0

    @property
    def pace(self) -> float:
        """Requests a second that went out of the queue of late."""
        return self._released / _RATE_S

    @staticmethod
    def code(reason: str) -> str:
        """The error's code of a refusal."""
        return _CODES[reason]

    # Within

    def may_go(self, item: Waiting, now: float) -> bool:
        """Whether a request that comes now goes at once."""
        if item.fresh and not self.fits(item, now):
            return False
        if self.queue and (self.queue.oldest(False) is not None or not self._blocked(now)):
            return False  # others came before
        return self.load.room()

    def _blocked(self, now: float) -> bool:
        """Whether all that wait open a session for which there is no memory."""
        oldest = self.queue.oldest(True)
        return oldest is None or not self.fits(oldest, now)

    def fits(self, item: Item, now: float) -> bool:
        """Whether there is memory for a session that this request opens."""
        if not self.holds_sessions:
            return True
        assert isinstance(item, Waiting)
        anyway_s = min(_ANYWAY_S, self.config.session_s)
        if now - self._fresh_at >= anyway_s and now - item.at >= anyway_s / 3:
            return True  # nobody waits for ever
        if self.load.idle():
            return True  # a replica stands still: that costs more than what is lost by it
        wanted = self.sessions.tokens + item.prepared.lane.view.lengths(item.prepared.key)[0]
        return wanted <= self.config.working_set * self.capacity_tokens

    def _look_for_losses(self) -> None:
        if not self.config.working_set or self._watched_s < min(_LEARN_S, self.config.session_s):
            return
        if not self.holds_sessions and self.sessions.lost_share > _LOST_SHARE:
            self.holds_sessions = True
            log.info("event=sessions_held pool=%s", self.lane.pool.name)

    def _decide(self, item: Waiting, now: float) -> Decision:
        """The replica is chosen now. Raises NoReplica."""
        prepared, lane = item.prepared, self.lane
        decision = lane.decide(prepared, now, item.rand)
        if item.fresh:
            self._fresh_at = now
        request, hit = prepared.request, decision.hit_tokens[0]
        output = self._expected(request)
        session = self.sessions.sent(
            item.session,
            request.session,
            prepared.key,
            decision.prompt_tokens,
            max(decision.hit_tokens),
            output,
        )
        if session is not None:
            self._open[decision.ticket & _TICKET_MASK] = session
        cost = decision.prompt_tokens - hit + self.config.output_weight * output
        self.queue.charge(item.tenant, cost)
        return decision

    def _expected(self, request: Request) -> float:
        """Output tokens that a request is charged for when it goes."""
        output = self.lane.output_tokens
        most = request.max_tokens
        return output if most is None or most > output else float(most)

    def _go(self, item: Waiting, now: float) -> None:
        self._released += 1.0
        self.metrics.admission_wait(self.lane.pool.name, now - item.at)
        try:
            decision = self._decide(item, now)
        except RouterError as error:
            self._leave(item, now)
            self._count("nobody")
            self._tell(item, error)
            return
        self._count("admitted")
        self._tell(item, decision)

    def _keep(self, item: Waiting) -> None:
        limit = self.queue.limit(item)
        if limit:
            self.metrics.limit_reached(limit)
            raise self._refusal("full", "too many requests wait")
        self._count("queued")
        self.queue.keep(item)

    def _late(self, item: Waiting, now: float) -> None:
        """Its time is over."""
        if not self.load.has_any():
            self._go(item, now)  # the last resort, or 503
            return
        self.metrics.admission_wait(self.lane.pool.name, now - item.at)
        self._leave(item, now)
        self._tell(item, self._refusal("late", "no replica had room in time"))

    def _leave(self, item: Waiting, now: float) -> None:
        """It came to nothing."""
        if item.session is not None:
            self.sessions.end(item.session, now)

    def _tell(self, item: Waiting, what: Decision | RouterError) -> None:
        told = item.told
        del item.told, item.prepared
        try:
            told(what)
        except Exception:
            log.exception("event=admission_bug pool=%s", self.lane.pool.name)
            if isinstance(what, Decision):
                self.lane.close(what.ticket, Outcome(status="error"), self._looked_at)

    def _refusal(self, reason: str, text: str) -> NoReplica:
        self._count(reason)
        wait_s = len(self.queue) / self.pace if self.pace else self.config.wait_s
        return NoReplica(
            f"pool {self.lane.pool.name!r}: {text}",
            status=429,
            code=_CODES[reason],
            retry_after_s=min(max(wait_s, _RETRY_S[0]), _RETRY_S[1]),
        )

    def _count(self, result: str) -> None:
        self.metrics.count("warmlane_admission_total", self.lane.pool.name, result)

    def _become(self, active: bool) -> None:
        if active is not self.active:
            self.active = active
            log.info("event=admission pool=%s active=%s", self.lane.pool.name, active)
            for listener in self.on_active:
                listener()

    def _changed(self, event: str, replica: Replica) -> None:
        """Replicas came or went."""
        del event, replica
        if not self.load.has_any() and self.config.enabled:
            self._become(True)
        self.stirred()


def described(gate: Gate, now: float) -> dict[str, Any]:
    """One gate as the admin interface shows it; tenants by a digest, never by name."""
    oldest = min((item.at for item in gate.queue), default=now)
    return {
        "pool": gate.lane.pool.name,
        "active": gate.active,
        "waiting": len(gate.queue),
        "waiting_new_sessions": gate.queue.fresh,
        "waiting_bytes": gate.queue.bytes,
        "oldest_s": now - oldest,
        "tenants_waiting": sum(each.waiting > 0 for each in gate.queue.accounts.values()),
        "sessions": len(gate.sessions),
        "session_tokens": gate.sessions.tokens,
        "working_set": gate.working_set,
        "lost_share": gate.sessions.lost_share,
        "holds_new_sessions": gate.holds_sessions,
    }
