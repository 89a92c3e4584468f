"""The answer's half of a request: hold it, relay it, end it, or see that it broke.

Owns what happens between a replica's first byte and the client's last one. The other half
(`exchange`) decides, sends and fails over; it is called back through `_failed`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol

from warmlane.router.answers import Answer
from warmlane.router.attempts import HELD, SUSPECT, Attempts, Fault
from warmlane.router.errors import RouterError
from warmlane.router.problems import stream_error_event
from warmlane.router.proxy.hold import READ_KINDS, Hold, Piece, Verdict, is_client_error
from warmlane.router.proxy.relay import Relay
from warmlane.router.proxy.request_head import RequestHead
from warmlane.router.proxy.response_head import ResponseHead, response_bytes
from warmlane.router.proxy.wire import Framing
from warmlane.router.types import Decision, Kind, Outcome, Request

if TYPE_CHECKING:
    from warmlane.router.admission_line import Waiting
    from warmlane.router.proxy.links import Link
    from warmlane.router.proxy.state import PoolSide, State
    from warmlane.router.proxy.upstream import Upstream

ABORTED: Final = "The engine stopped before the answer was complete."
_OK: Final = Outcome()
# Streamed reads between two `progress` events: decode work changes slowly.
_PROGRESS_EVERY: Final = 16


class Client(Protocol):
    """What a request wants of its client's connection (`downstream.Client`)."""

    debug: bool  # this request may see the debug headers
    closing: bool  # the connection ends with this answer
    stalled: bool  # the client does not read

    @property
    def exchange(self) -> object: ...
    def write(self, data: bytes) -> None: ...
    def answered(self, error: RouterError) -> None: ...
    def done(self, close: bool) -> None: ...
    def cut(self) -> None: ...
    def pause_upload(self, paused: bool) -> None: ...


class Delivery(ABC):
    """Base of `Exchange`: all of a request's state, and the half of it that handles the answer."""

    __slots__ = (
        "_answer",
        "_attempts",
        "_body",
        "_client",
        "_connecting",
        "_decision",
        "_decision_s",
        "_head",
        "_hold",
        "_link",
        "_open",
        "_queued",
        "_reads",
        "_relay",
        "_reloaded",
        "_request",
        "_response",
        "_side",
        "_slot",
        "_state",
        "_total",
        "_trailer",
        "_upstream",
        "_waiting",
        "begun",
        "deadline",
        "kind",
        "to_head",
    )

    _request: Request
    _decision: Decision
    _side: PoolSide
    _link: Link
    _decision_s: float
    _relay: Relay

    def __init__(
        self, state: State, client: Client, head: RequestHead, body: bytes, trailer: bytes
    ) -> None:
        self._state = state
        self._client = client
        self._head = head
        self._body = body
        self._trailer = trailer
        self.to_head = head.method == b"HEAD"
        self.kind = Kind.OTHER  # until the request is parsed
        self.begun = False  # the client has got a byte of the answer
        self._open = False  # the ticket
        self._slot = -1
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None  # for the prompt's token ids
        self._queued: Waiting | None = None  # by admission
        self._attempts: Attempts | None = None
        self._reloaded = False  # its adapter was loaded again where the engine had lost it
        self._response: ResponseHead | None = None
        self._answer: Answer | None = None
        self._hold: Hold | None = None
        self._reads = 0
        self._total = self.deadline = state.now + state.timeouts.total_s

    @abstractmethod
    def _failed(self, fault: Fault, reason: str) -> None:
        """An attempt failed and the client has seen nothing yet."""

    @abstractmethod
    def _attempt(self, slot: int, now: float, fresh: bool = False) -> None:
        """Send the request to this slot; fresh: not on a kept connection."""

    # What the connection tells

    def on_head(self, head: ResponseHead, more: bool) -> None:
        self._response = head
        read = (
            head.status == 200
            and (head.sse or head.json)
            and not head.encoded
            and self.kind in READ_KINDS
        )
        if read:
            self._answer = Answer(self.kind, head.sse, self._state.limits.answer_text_bytes)
        timeouts = self._state.timeouts
        if read or head.status in HELD:
            self._hold = Hold(head, self._answer, self._state.limits)
            self.deadline = min(self._state.now + self._state.limits.hold_s, self._total)
            return
        self.deadline = min(self._state.now + timeouts.idle_s, self._total)
        if not more:
            self._client.write(self._begin())

    def on_data(
        self, raw: bytes, payload: bytes, aligned: bool, done: bool, trailer: bytes
    ) -> None:
        if done:
            self._upstream = None
            if self._ends_without_end():
                self.on_fault(Fault.RESET, "the stream ended without its last event", False)
                return
        hold = self._hold
        if hold is None:
            self._pass(raw, payload, aligned, done, trailer)
            return
        answer = self._answer
        if answer is not None:
            answer.feed(payload)
        verdict = hold.judge((raw, payload, aligned, trailer), done)
        if verdict is Verdict.RELEASE:
            self._release(hold.pieces, done)
        elif verdict is Verdict.FAIL:
            assert hold.fault is not None
            self._failed(hold.fault, "")

    def on_whole(self, head: ResponseHead, raw: bytes, body: bytes) -> None:
        """`on_head` and the only `on_data` in one. raw: the bytes of both.

        The common answer that is no stream takes the short way: there is nothing to hold.
        """
        kind = self.kind
        if head.status != 200 or not head.json or head.encoded or kind not in READ_KINDS:
            self.on_head(head, True)
            self.on_data(body, body, True, True, b"")
            return
        self._upstream = None
        self._response = head
        state = self._state
        answer = self._answer = Answer(kind, False, state.limits.answer_text_bytes)
        scan = answer.scan
        scan.feed(body)
        if scan.abort_without_token:
            self._failed(Fault.ABORTED, "")
            return
        now = monotonic()
        state.router.first_token(self._decision.ticket, now)
        client = self._client
        close = client.closing
        extra = self._debug_lines() if client.debug else b""
        out = response_bytes(head, close=close, dechunk=False, extra=extra)
        self.begun = True
        client.write(raw if out is head.raw else out + body)
        self._side.ejector.ok(self._slot)
        self._end("ok", 200, now)
        client.done(close)

    def _ends_without_end(self) -> bool:
        """A stream without length and chunks looks whole when it is cut: its last event tells."""
        head, answer = self._response, self._answer
        if head is None or head.framing is not Framing.CLOSE or answer is None:
            return False
        return head.sse and not answer.done

    def on_fault(self, fault: Fault, reason: str, stale: bool) -> None:
        self._upstream = None
        if stale and self._response is None:
            self._attempt(self._slot, monotonic(), fresh=True)
        elif self.begun:
            self._side.fault(self._slot, fault)
            self._broken(reason, "upstream_broken")
        else:
            self._failed(fault, reason)

    def _begin(self) -> bytes:
        """The head for the client; from here on there is no way back."""
        head = self._response
        assert head is not None
        client = self._client
        self._hold = None
        self.begun = True
        self._relay = relay = Relay()
        extra = self._debug_lines() if client.debug else b""
        return relay.head(head, http10=self._head.http10, close=client.closing, extra=extra)

    def _release(self, pieces: list[Piece], done: bool) -> None:
        """Relay all that was held, in one write."""
        if self._answer is not None and pieces:
            self._state.router.first_token(self._decision.ticket, monotonic())
        out = self._begin()
        if self._cut_short():
            self._engine_error(b"".join([piece[1] for piece in pieces]), out)
            return
        relay = self._relay
        if not pieces:  # the time cap came before the first body byte
            pass
        elif len(pieces) == 1:
            raw, payload, aligned, trailer = pieces[0]
            out += relay.body(raw, payload, aligned, done, trailer)
        else:
            parts = [out]
            for raw, payload, aligned, trailer in pieces[:-1]:
                parts.append(relay.body(raw, payload, aligned, False, trailer))
            raw, payload, aligned, trailer = pieces[-1]
            parts.append(relay.body(raw, payload, aligned, done, trailer))
            out = b"".join(parts)
        self._client.write(out)
        self._touch()
        if done:
            self._finish()

    def _pass(self, raw: bytes, payload: bytes, aligned: bool, done: bool, trailer: bytes) -> None:
        """Relay one read at once."""
        out = b"" if self.begun else self._begin()
        answer = self._answer
        if answer is not None:
            answer.feed(payload)
            if self._cut_short():
                self._engine_error(payload, out)
                return
            self._reads += 1
            if not self._reads % _PROGRESS_EVERY:
                self._state.router.progress(self._decision.ticket, answer.events)
        body = self._relay.body(raw, payload, aligned, done, trailer)
        if body or out:
            self._client.write(out + body if out else body)
        self._touch()
        if done:
            self._finish()

    def _cut_short(self) -> bool:
        """The engine broke its own stream: an error event, or tokens and then "abort" (what vLLM
        sends when it is stopped). Both come with a clean [DONE], which must not pass."""
        head, answer = self._response, self._answer
        if answer is None or head is None or not head.sse:
            return False
        return answer.error or answer.finish_reason == "abort"

    def _engine_error(self, payload: bytes, begin: bytes) -> None:
        """Pass the engine's words up to its error, then end the stream as a broken one."""
        answer = self._answer
        assert answer is not None
        event = b"" if answer.error else stream_error_event(ABORTED, "engine_aborted", self.kind)
        self._client.write(begin + self._relay.error_end(payload, event))
        if not is_client_error(payload):
            self._side.fault(self._slot, Fault.ERROR_EVENT if answer.error else Fault.ABORTED)
        self._state.metrics.stream_broken(self._side.name, self._replica_name())
        self._drop_upstream()
        self._end("error" if answer.error else "aborted", 200)
        chunked = self._response is not None and self._response.framing is Framing.CHUNKED
        self._client.done(self._relay.close or not chunked)

    def _broken(self, reason: str, code: str) -> None:
        """The answer broke after the client had a part of it."""
        out = self._relay.broken(
            stream_error_event(f"The answer broke off: {reason}", code, self.kind)
        )
        self._state.metrics.stream_broken(self._side.name, self._replica_name())
        self._drop_upstream()
        assert self._response is not None
        self._end("error", self._response.status)
        if out is None:
            self._client.cut()
            return
        self._client.write(out)
        self._client.done(self._relay.close)

    def _finish(self) -> None:
        """The answer went out whole."""
        head = self._response
        assert head is not None
        if head.status < 500:
            self._side.ejector.ok(self._slot)
        elif head.status not in SUSPECT:
            self._side.fault(self._slot, Fault.SERVER)
        self._end("ok" if head.status < 400 else "error", head.status)
        self._client.done(self._relay.close)

    def _held_too_long(self, hold: Hold) -> None:
        if hold.give_up() is Verdict.RELEASE:
            self._release(hold.pieces, False)
        else:
            assert hold.fault is not None
            self._failed(hold.fault, "")

    def pause(self) -> None:
        """The client reads slower than the replica writes."""
        if self._upstream is not None:
            self._upstream.pause()

    def resume(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()

    def _touch(self) -> None:
        """Something moved: the silence starts anew."""
        self.deadline = min(self._state.now + self._state.timeouts.idle_s, self._total)

    def _drop_upstream(self) -> None:
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()

    def _end(self, status: str, http_status: int, now: float = 0.0) -> None:
        """Close the ticket and count. Exactly once per decided request. now: read if not given."""
        assert self._open
        self._open = False
        state = self._state
        decision = self._decision
        answer = self._answer
        if answer is None:
            outcome = _OK if status == "ok" else Outcome(status=status)
        else:
            outcome = answer.outcome(status)
        state.router.close(decision.ticket, outcome, now or monotonic())
        name = self._link.replica.name
        state.metrics.request_done(decision.pool, name, self.kind, http_status)

    def _replica_name(self) -> str:
        return self._link.replica.name

    def _hit_tokens(self) -> int:
        choices, slot = self._decision.choices, self._slot
        return self._decision.hit_tokens[choices.index(slot)] if slot in choices else 0

    def _debug_lines(self) -> bytes:
        lines = (
            f"x-warmlane-replica: {self._replica_name()}\r\n"
            f"x-warmlane-hit-tokens: {self._hit_tokens()}\r\n"
            f"x-warmlane-view: {self._decision.view}\r\n"
            f"x-warmlane-decision-us: {self._decision_s * 1e6:.1f}"
        )
        return lines.encode("latin-1")
