"""The life of one request: decide, send, hold the answer, move on or relay, close the ticket.

Until the client has seen a byte, a failed attempt moves to the next choice of the same decision;
after that it never does. `_end` is reached exactly once, whatever happens, and closes the ticket.

No task and no future per request: connections call in, and one coarse tick calls `expired`.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from warmlane.router.admission_line import Waiting
from warmlane.router.admission_read import marked
from warmlane.router.answers import Answer
from warmlane.router.attempts import Attempts, Fault
from warmlane.router.errors import NoReplica, RequestError, RouterError
from warmlane.router.feeds.adapters import not_loaded
from warmlane.router.proxy.delivery import ABORTED, Delivery
from warmlane.router.proxy.relay import Relay
from warmlane.router.proxy.request_head import request_bytes
from warmlane.router.requests import kind_of, parse, rewrite_model
from warmlane.router.types import Decision, ReplicaState, Request, Rest

if TYPE_CHECKING:
    from warmlane._core.straight import Straight
    from warmlane.router.interfaces import TokenSource
    from warmlane.router.proxy.hold import Hold
    from warmlane.router.proxy.upstream import Upstream

log = logging.getLogger("warmlane.proxy")


class Exchange(Delivery):
    """See the module."""

    __slots__ = ()

    # Deciding and sending

    def start(self) -> None:
        state = self._state
        head = self._head
        try:
            request, self._body = parse(
                head.method.decode("ascii"),
                head.path,
                head.headers,
                self._body,
                transfer_params=state.transfer_params,
            )
        except RequestError as error:
            self.kind = kind_of(head.path)
            self._refuse_unsent(error)
            return
        tokens = state.tokens
        pool = None if tokens is None else tokens.pool_of(request)
        if tokens is None or pool is None:
            self._decide_and_send(request)
            return
        self._waiting = asyncio.get_running_loop().create_task(
            self._decide_with_ids(tokens, request, pool)
        )

    async def _decide_with_ids(self, tokens: TokenSource, request: Request, pool: str) -> None:
        """Exact hits need the engine's token ids: they come in time or not at all."""
        try:
            request = await tokens.ids(request, pool, self._body)
            self._waiting = None
            self._decide_and_send(request)
        except Exception:  # noqa: BLE001 - reported by crashed()
            self.crashed()

    def _decide_and_send(self, request: Request) -> None:
        state = self._state
        self.kind = request.kind
        if state.admission is not None:
            request = marked(request, self._head.headers, self._body, state.admission)
        self._request = request
        now = monotonic()
        try:
            shadow = state.shadow
            if shadow is None or shadow.always:
                rand = state.rand(32)
                found = state.router.ask(request, now, rand, self._told, len(self._body))
            else:
                found = shadow.route(request, now, state.rand(48))
        except RouterError as error:
            self._refuse_unsent(error)
            return
        if isinstance(found, Waiting):
            self._queued = found
            self.deadline = self._total
            return
        self._decision_s = monotonic() - now
        state.metrics.decision(found.pool, self._decision_s)
        self._send_decided(found, now)

    def _told(self, what: Decision | RouterError) -> None:
        """The end of a wait in the router's queue."""
        self._queued = None
        self._decision_s = 0.0
        try:
            if isinstance(what, Decision):
                self._send_decided(what, monotonic())
            else:
                self._refuse_unsent(what)
        except Exception:  # noqa: BLE001 - reported by crashed()
            self.crashed()

    def _send_decided(self, decision: Decision, now: float) -> None:
        state, request = self._state, self._request
        self._decision = decision
        self._open = True
        if decision.model and request.rewrite_model and self._body:
            self._body = rewrite_model(self._body, decision.model)
        side = self._side = state.side(decision.pool)
        side.budget.request()
        self._attempt(decision.choices[0], now)

    def take_over(self, course: Straight) -> None:
        """Go on with a request that was decided, and perhaps sent, by a course."""
        state = self._state
        head, lead = self._head, course.lead
        self._request, _ = parse("POST", head.path, head.headers, self._body)
        self.kind = self._request.kind
        self._decision = lead.desk.adopt(course.picked, self._request)
        self._open = True
        self._decision_s = course.decision_s
        self._side = lead.side
        self._slot = self._decision.choices[0]
        self._link = course.link or self._side.link_of(self._slot)
        self._total, self.deadline = course.total, course.deadline
        upstream = self._upstream = course.back
        if upstream is None:
            return
        if not course.begun:
            upstream.take_over(self, None, None)
            return
        response = self._response = course.response
        upstream.take_over(self, response, course.chunks)
        self.begun = True
        self._relay = Relay()
        self._relay.head(response, http10=False, close=course.close, extra=b"")
        self._reads = course.reads
        text_bytes = state.limits.answer_text_bytes
        self._answer = Answer(self.kind, True, text_bytes, course.scan)

    def go_on(self, connection: Upstream | None, now: float) -> None:
        """Send what a course could not send. connection: a kept one that it took for this."""
        if connection is None:
            self._attempt(self._slot, now)
        else:
            self._send(connection, now)

    def _refuse_unsent(self, error: RouterError) -> None:
        if isinstance(error, RequestError):
            reason = error.code or str(error.status)
        else:
            reason = (error.code or "no_replica") if isinstance(error, NoReplica) else "error"
        self._state.metrics.rejected(reason)
        self._client.answered(error)

    def _attempt(self, slot: int, now: float, fresh: bool = False) -> None:
        self._slot = slot
        replica = self._side.pool.replicas[slot]
        if replica is None:
            self._failed(Fault.CONNECT, "the replica left the pool")
            return
        link = self._link = self._state.links.of(replica)
        adapters = self._state.adapters
        if adapters is not None and self._decision.adapter:
            wait = adapters.needed(self._side.pool, slot, self._decision.adapter)
            if wait is not None:
                self.deadline = self._total  # a load has a time limit of its own
                self._connecting = asyncio.get_running_loop().create_task(self._load(wait))
                return
        connection = None if fresh else link.take(now)
        if connection is not None:
            self._send(connection, now)
            return
        self.deadline = min(now + self._state.timeouts.connect_s, self._total)
        self._connecting = link.connect(self)

    async def _load(self, wait: asyncio.Future[str]) -> None:
        """The replica has to load the request's adapter; others may wait for the same call."""
        try:
            trouble = await asyncio.shield(wait)
            self._connecting = None
            if trouble:
                self._failed(Fault.MISSING, f"adapter: {trouble}")
            else:
                self._attempt(self._slot, monotonic())
        except Exception:  # noqa: BLE001 - reported by crashed()
            self.crashed()

    def connected(self, connection: Upstream) -> None:
        self._connecting = None
        self._send(connection, monotonic())

    def connect_failed(self, error: BaseException) -> None:
        self._connecting = None
        self._failed(Fault.CONNECT, str(error) or type(error).__name__)

    def _send(self, connection: Upstream, now: float) -> None:
        link = self._link
        body = self._body
        head = request_bytes(self._head, link.host_line, link.extra, len(body), self._trailer)
        if self._trailer:
            body = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, self._trailer)
        self._upstream = connection
        state = self._state
        deadline = now + state.timeouts.first_byte_s
        self.deadline = deadline if deadline < self._total else self._total
        connection.send(self, head, body)
        state.router.sent(self._decision.ticket, self._slot, now)

    def on_writable(self, writable: bool) -> None:
        """Buffered bodies are handed over whole; nothing to throttle."""

    # Failing over

    def _failed(self, fault: Fault, reason: str) -> None:
        """An attempt failed and the client has seen nothing yet."""
        side = self._side
        slot = self._slot
        side.fault(slot, fault)
        attempts = self._attempts
        if attempts is None:
            retry = self._state.config.retry
            attempts = self._attempts = Attempts(
                self._decision.choices, side.budget, retry.attempts, side.zone_of
            )
        now = monotonic()
        if fault is Fault.MISSING and self._response is not None and self._lost_adapter():
            self._reloaded = True
            self._drop_upstream()
            self._response = self._answer = self._hold = None
            self._attempt(slot, now)
            return
        slot = attempts.next(fault, now, self._is_ready, self._rest)
        if slot < 0:
            self._out_of_choices(fault, reason)
            return
        self._drop_upstream()
        self._response = self._answer = self._hold = None
        self._state.metrics.retry(side.name, fault)
        if not self._is_ready(slot):
            self._state.metrics.last_resort(side.name, "retry")
        log.debug("moved pool=%s fault=%s slot=%d reason=%s", side.name, fault, slot, reason)
        self._state.router.moved(self._decision.ticket, slot, now)
        self._attempt(slot, now)

    def _lost_adapter(self) -> bool:
        """A 404 for an adapter corrects the engine's list. True: best loaded there again."""
        adapter, table = self._decision.adapter, self._side.pool.adapters
        if not adapter:
            return False
        table.missing(self._slot, adapter)
        elsewhere = any(table.has(slot, adapter) for slot in self._decision.choices)
        return not elsewhere and not self._reloaded and table.can_load(self._slot, adapter)

    def _is_ready(self, slot: int) -> bool:
        replica = self._side.pool.replicas[slot]
        return replica is not None and replica.state is ReplicaState.READY

    def _rest(self, wanted: Rest) -> tuple[int, ...]:
        """Whom else the pool has for this request."""
        ticket, who = self._decision.ticket, (wanted.ready_only, wanted.avoid, wanted.tried)
        return self._state.router.rest(ticket, monotonic(), *who)

    def _out_of_choices(self, fault: Fault, reason: str) -> None:
        hold = self._hold
        if hold is not None and fault in (Fault.BACKPRESSURE, Fault.DEAD, Fault.GATEWAY):
            # The replica's own words say it best, with its Retry-After.
            self._release(hold.pieces, self._upstream is None)
            return
        if fault is Fault.MISSING:
            self._nobody_has_it(hold)
            return
        self._drop_upstream()
        log.debug("failed pool=%s fault=%s reason=%s", self._side.name, fault, reason)
        self._refuse(_final_error(fault))

    def _nobody_has_it(self, hold: Hold | None) -> None:
        """No replica that was tried has the model. The engine's own 404 passes only where nobody is
        left who might have it."""
        attempts, adapter = self._attempts, self._decision.adapter
        assert attempts is not None, "one has failed"
        left = not all(attempts.was_tried(slot) for slot in self._rest(Rest(ready_only=True)))
        if hold is not None and not left:
            self._release(hold.pieces, self._upstream is None)
            return
        self._drop_upstream()
        self._refuse(not_loaded(self._side.pool, adapter, self._request.model))

    def _refuse(self, error: RouterError) -> None:
        """Our own answer in place of a replica's; the decision was made, so a ticket is open."""
        status = error.status if isinstance(error, RequestError | NoReplica) else 502
        self._end("error", status)
        self._client.answered(error)

    # Ending

    def expired(self, now: float) -> None:
        """A time-out of this request; called by the tick."""
        if self._hold is not None and now < self._total:
            self._held_too_long(self._hold)
        elif self._queued is not None:
            self._leave_queue()
            self._refuse_unsent(_final_error(Fault.TIMEOUT))
        elif self._connecting is not None and now < self._total:
            self._failed(Fault.CONNECT, "connect time-out")
        elif self.begun:
            if self._client.stalled:  # it is the client who does not read
                self.cancel()
                self._client.cut()
                return
            self._side.fault(self._slot, Fault.TIMEOUT)
            self._broken("time-out", "timeout")
        elif now >= self._total:
            self._drop_upstream()
            self._refuse(_final_error(Fault.TIMEOUT))
        else:
            self._failed(Fault.TIMEOUT, "no answer in time")

    def cancel(self) -> None:
        """The client is gone, or the proxy stops: the replica must not work for nobody."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:  # nothing is decided yet
            waiting.cancel()
            self._state.metrics.client_gone("")
            return
        if self._queued is not None:
            self._leave_queue()
            self._state.metrics.client_gone("")
            return
        self._drop_upstream()
        self._state.metrics.client_gone(self._side.name)
        self._end("cancelled", 499)

    def _leave_queue(self) -> None:
        queued, self._queued = self._queued, None
        if queued is not None:
            queued.cancel()

    def crashed(self) -> None:
        """An exception where none should be, now being handled: this request alone fails."""
        log.exception("a request failed inside the router")
        self._state.metrics.rejected("internal_error")
        self._leave_queue()
        self._drop_upstream()
        if self._open:
            self._end("error", 500)
        if self._client.exchange is not self:  # it was done for the client
            return
        if self.begun:
            self._client.cut()
        else:
            self._client.answered(
                RequestError(500, "Internal error.", kind="server_error", code="internal_error")
            )


def _final_error(fault: Fault) -> RouterError:
    """What the client hears when no choice is left. No replica's name or address is in it."""
    if fault is Fault.TIMEOUT:
        return RequestError(
            504, "The engine did not answer in time.", kind="timeout_error", code="timeout"
        )
    if fault is Fault.ABORTED:
        return NoReplica(ABORTED, retry_after_s=1.0)
    return RequestError(502, _WORDS[fault], kind="upstream_error", code=f"upstream_{fault.value}")


_WORDS: Final = {
    Fault.CONNECT: "The engine could not be reached.",
    Fault.RESET: "The engine closed the connection before its answer was complete.",
    Fault.PROTOCOL: "The engine's answer was not understood.",
    Fault.ERROR_EVENT: "The engine failed before its first token.",
}
