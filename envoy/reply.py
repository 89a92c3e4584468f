"""The response half of an external processing stream, and the end of its ticket.

Base of `Session`, which owns the request half. Three levels, by config: 0 sees no answer at all, 1
its headers and end, 2 its body too. A gateway may send more than the level asks for; what it sends
is always answered, so that no byte waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from warmlane.envoy import messages as wire
from warmlane.envoy.streams import INTERNAL, INVALID_ARGUMENT, OK
from warmlane.router.answers import GENERATES, Answer
from warmlane.router.types import Decision, Kind, Outcome

if TYPE_CHECKING:
    from warmlane.envoy.messages import Received
    from warmlane.envoy.picker import Loading, Picker, Waiting, Way, Ways
    from warmlane.router.shadow import Beside

log = logging.getLogger("warmlane.envoy")

# Chunks of an answer between two `progress` events: decode work changes slowly.
_PROGRESS_EVERY: Final = 16
# How a stream without an open ticket ended, by the phase of its request half (`session`).
_RESET: Final = ("reset",)
_DONE: Final = ("done",)
_FAILED: Final = ("error",)
_ENDS: Final = (_RESET, _RESET, _RESET, _DONE, ("refused",))
_SERVED_HEADER: Final = b"x-conformance-test-served-endpoint"
# A stream of events takes longer; a gateway that sends no response trailers leaves at once.
_EARLY_S: Final = 0.02
_OK: Final = Outcome()
CANCELLED: Final = Outcome(status="cancelled")
FAILED: Final = Outcome(status="error")


class Reply:
    """State of a stream, and its response half."""

    __slots__ = (
        "_answer",
        "_answered_at",
        "_beside",
        "_chunks",
        "_closed",
        "_decision",
        "_held",
        "_http_status",
        "_internal",
        "_kind",
        "_late",
        "_observed",
        "_open",
        "_out",
        "_phase",
        "_picker",
        "_reads",
        "_request_head",
        "_request_mode",
        "_response_mode",
        "_slot",
        "_stream",
        "_trailers",
        "_waiting",
        "_wake",
        "_way",
        "_ways",
        "status",
    )

    status: tuple[int, str] | None
    _decision: Decision
    _late: list[Received]  # what came while token ids were awaited
    _ways: Ways  # of the pool that decided, which a reload may take away meanwhile

    def __init__(self, picker: Picker, wake: Callable[[], None]) -> None:
        self._wake: Callable[[], None] | None = wake  # it may lead back here: gone with the stream
        self.status = None
        self._picker = picker
        self._out: list[bytes] = []
        self._request_head: Received | None = None
        self._request_mode = self._response_mode = wire.FULL_DUPLEX
        self._phase = 0
        self._chunks: list[bytes] = []
        self._held = 0
        self._trailers = False
        self._observed = False
        self._internal: list[bytes] | None = None
        self._kind = Kind.OTHER
        self._stream = False
        self._open = False  # the ticket
        self._waiting: Waiting | Loading | None = None
        self._slot = -1
        self._way: Way | None = None
        self._beside: Beside | None = None
        self._answer: Answer | None = None
        self._http_status = 0
        self._answered_at = 0.0
        self._reads = 0
        self._closed = False
        picker.open += 1

    # The face of a StreamHandler that needs no protocol

    def take(self) -> list[bytes]:
        """Messages to send now."""
        out = self._out
        if out:
            self._out = []
        return out

    @property
    def held_bytes(self) -> int:
        """Of the request's body, kept until the choice: what a transport charges the stream for."""
        return self._held

    def half_closed(self) -> None:
        """Nothing more will come: the stream ends, and with it what is open."""
        if self.status is None:
            self._end_with(OK)

    def closed(self) -> None:
        """The stream is gone."""
        if self._closed:
            return
        self._closed = True
        self._wake = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        picker = self._picker
        picker.open -= 1
        if self._held:
            self._let_go()
        if self._open:
            if self._left_early():
                self._predict_end()
            else:
                self._ended()
            end = _DONE if self._http_status else _RESET
        elif self.status is not None and self.status[0] != OK:
            end = _FAILED
        else:
            end = _ENDS[self._phase]
        ends = picker.ends
        ends[end] = ends.get(end, 0) + 1

    def _end_with(self, code: int, text: str = "") -> None:
        """The stream ends with what is queued and this gRPC status."""
        self.status = (code, text)

    def _let_go(self) -> None:
        """Forget the held body."""
        if self._held:
            self._picker.buffered -= self._held
            self._held = 0
        self._chunks = []

    def _refuse_stream(self, what: str, text: str) -> None:
        """The gateway broke the protocol: it hears INVALID_ARGUMENT, and decides by its own mode
        (fail open or closed) what becomes of the request."""
        self._picker.metrics.count("warmlane_ext_proc_protocol_errors_total", what)
        self._end_with(INVALID_ARGUMENT, text)

    def _crashed(self) -> None:
        """An exception where none should be, now being handled: this stream alone fails."""
        log.exception("event=ext_proc_bug")
        self._picker.metrics.rejected("internal_error")
        self._end_with(INTERNAL, "internal error")

    # Response messages

    def _on_response_headers(self, part: Received) -> None:
        self._http_status = part.status
        if part.served:
            self._served(part.served)
        elif self._beside is not None:
            self._told(-1)
        if self._open:
            self._begin_answer(part)
        if self._observed:
            return
        mutation = b""
        if self._picker.test_headers and part.served:
            mutation = wire.set_header(_SERVED_HEADER, part.served.encode())
        if mutation:
            self._out.append(wire.answer(wire.RESPONSE_HEADERS, b"", -1, mutation))
        else:
            self._out.append(wire.CONTINUE[wire.RESPONSE_HEADERS])
        if part.end_of_stream and self._open:
            self._ended()

    def _begin_answer(self, part: Received) -> None:
        """Headers of the engine's answer: what can be told of its first token now.

        An engine that streams sends its headers before it computes (vLLM: as soon as the request
        is queued), so at level 1 the first token of a stream is predicted. An answer in one piece
        comes when all of it is there.
        """
        picker = self._picker
        content_type = part.headers.get(b"content-type", b"")
        if picker.level == 2 and part.status == 200 and self._kind in GENERATES:
            sse = content_type.startswith(b"text/event-stream")
            plain = b"content-encoding" not in part.headers
            if plain and (sse or b"json" in content_type):
                self._answer = Answer(self._kind, sse, picker.text_bytes)
                return
        now = self._answered_at = monotonic()
        if part.status == 404 and self._decision.adapter:
            self._ways.pool.adapters.missing(self._slot, self._decision.adapter)
        if part.status >= 400 or not self._stream:
            picker.router.first_token(self._decision.ticket, now)
        else:
            picker.predicted.watch(self._decision.ticket, self._slot, now, end=False)

    def _on_response_body(self, part: Received) -> None:
        answer, body = self._answer, part.body
        if not self._observed:
            if self._response_mode >= wire.FULL_DUPLEX:
                self._out += wire.pieces(wire.RESPONSE_BODY, body, part.end_of_stream)
            else:
                self._out.append(wire.CONTINUE[wire.RESPONSE_BODY])
        if answer is not None and self._open:
            before = answer.first_token
            answer.feed(body)
            router, ticket = self._picker.router, self._decision.ticket
            if answer.first_token and not before:
                router.first_token(ticket, monotonic())
            self._reads += 1
            if not self._reads % _PROGRESS_EVERY:
                router.progress(ticket, answer.events)
        if part.end_of_stream and self._open:
            self._ended()

    def _on_response_trailers(self, part: Received) -> None:
        if part.served:
            self._served(part.served)
        if not self._observed:
            self._out.append(wire.CONTINUE[wire.RESPONSE_TRAILERS])
        if self._open:
            self._ended()

    # The ticket

    def _left_early(self) -> bool:
        """Did the gateway end the stream though the answer goes on?

        Envoy keeps the stream to the answer's end where it wants to send response trailers, and
        else ends it after the headers. Only a stream of events can go on from there.
        """
        at = self._answered_at
        return self._stream and self._answer is None and 0.0 < monotonic() - at < _EARLY_S

    def _predict_end(self) -> None:
        """Nobody will see the end: the ticket's is predicted."""
        self._open = False
        ticket = self._decision.ticket
        self._picker.predicted.watch(ticket, self._slot, monotonic(), end=True)
        self._count(self._http_status)

    def _served(self, address: str) -> None:
        """The gateway says who serves: the ticket follows."""
        if not self._open and self._beside is None:
            return
        decision = self._decision
        slot = self._ways.slot_of(address, decision.choices)
        if self._beside is not None:
            self._told(slot)
        if not self._open or slot < 0 or slot == self._slot:
            return
        picker = self._picker
        if self._slot >= 0:
            picker.metrics.count("warmlane_ext_proc_served_elsewhere_total", decision.pool)
        self._slot = slot
        picker.router.sent(decision.ticket, slot, monotonic())

    def _told(self, slot: int) -> None:
        """What the other side chose in place of our choice; -1: it does not say."""
        beside, self._beside = self._beside, None
        assert beside is not None, "asked by the caller"
        beside.told(slot)

    def _ended(self) -> None:
        """Close the ticket and count. Exactly once per decided request."""
        self._open = False
        picker, decision, status = self._picker, self._decision, self._http_status
        now = monotonic()
        if self._beside is not None:
            self._told(-1)
        answer = self._answer
        if answer is not None:
            outcome = answer.outcome("ok" if answer.done or not answer.stream else "cancelled")
        elif not status:
            outcome = CANCELLED
        else:
            outcome = _OK if status < 400 else FAILED
        picker.router.close(decision.ticket, outcome, now)
        self._count(status)

    def _count(self, status: int) -> None:
        decision, way = self._decision, self._way
        if way is None or way.replica.slot != self._slot:  # it moved, or we did not choose
            ways = self._ways.fresh()
            way = ways[self._slot] if self._slot >= 0 else None
        name = "" if way is None else way.replica.name
        self._picker.metrics.request_done(decision.pool, name, self._kind, status)
