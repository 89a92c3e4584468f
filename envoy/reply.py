"""The response half of an external processing stream, and the end of its ticket.

Base of `Session`, which owns the request half. Three levels, by config: 0 sees no answer at all, 1
its headers and end, 2 its body too. A gateway may send more than the level asks for; what it sends
is always answered, so that no byte waits.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from warmlane._core.proc_course import Course
from warmlane.envoy import messages as wire
from warmlane.envoy.extras import SESSION_TOKEN, cost, token_of
from warmlane.envoy.streams import INTERNAL, INVALID_ARGUMENT
from warmlane.router.answers import GENERATES, Answer
from warmlane.router.types import Decision, Kind, Outcome

if TYPE_CHECKING:
    from warmlane.envoy.messages import Received
    from warmlane.envoy.picker import Loading, Picker, Waiting, Way, Ways
    from warmlane.envoy.rename import Rename
    from warmlane.router.admission_line import Waiting as Queued
    from warmlane.router.shadow import Beside

log = logging.getLogger("warmlane.envoy")

# Chunks of an answer between two `progress` events: decode work changes slowly.
_PROGRESS_EVERY: Final = 16
_SERVED_HEADER: Final = b"x-conformance-test-served-endpoint"
_OK: Final = Outcome()
CANCELLED: Final = Outcome(status="cancelled")
FAILED: Final = Outcome(status="error")


class Reply(Course):
    """The response half of a stream."""

    __slots__ = ()

    status: tuple[int, str] | None
    _picker: Picker
    _decision: Decision
    _kind: Kind
    _late: list[Received]  # what came while token ids were awaited
    _waiting: Waiting | Loading | Queued | None
    _way: Way | None
    _ways: Ways  # of the pool that decided, which a reload may take away meanwhile
    _beside: Beside | None
    _answer: Answer | None
    _asked: str  # the model, as the client named it
    _rename: Rename | None

    def _end_with(self, code: int, text: str = "") -> None:
        """The stream ends with what is queued and this gRPC status."""
        self.status = (code, text)

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
        picker, mutation = self._picker, b""
        if picker.test_headers and part.served:
            mutation = wire.set_header(_SERVED_HEADER, part.served.encode())
        if picker.options.session_token and self._open and self._slot >= 0:
            way = self._ways.fresh()[self._slot]
            if way is not None:
                mutation += wire.set_header(SESSION_TOKEN, token_of(way.address))
        if self._renames():
            mutation += wire.remove_header(b"content-length")
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
        if part.status == 404 and self._decision.adapter and self._kind in GENERATES:
            self._ways.pool.adapters.missing(self._slot, self._decision.adapter)
        if part.status >= 400 or not self._stream:
            if part.status >= 500:
                picker._failed(self._ways, self._slot)
            picker.router.first_token(self._decision.ticket, now)
        else:
            picker.predicted.watch(self._decision.ticket, self._slot, now, end=False)

    def _on_response_body(self, part: Received) -> None:
        answer, body = self._answer, part.body
        if not self._observed:
            last, rename = part.end_of_stream, self._renames()
            if self._response_mode == wire.FULL_DUPLEX:
                told = body if rename is None else rename.feed(body, last)
                self._out += wire.pieces(wire.RESPONSE_BODY, told, last)
            elif self._response_mode == wire.GRPC:
                self._out += wire.pieces(wire.RESPONSE_BODY, body, last)
            elif rename is not None:
                told = rename.feed(body, True)
                self._out.append(wire.answer(wire.RESPONSE_BODY, b"", -1, b"", told))
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
            self._tell_cost()
            self._ended()

    def _renames(self) -> Rename | None:
        """Who puts the client's name of the model back, where bodies come whole or in duplex."""
        rename: Rename | None = self._rename
        if self._answer is None or self._response_mode not in (wire.FULL_DUPLEX, wire.BUFFERED):
            return None
        return rename

    def _tell_cost(self) -> None:
        """Metadata with the answer's tokens, on the message that ends it."""
        if not self._picker.options.request_cost or self._answer is None or not self._out:
            return
        usage = self._answer.outcome("ok")
        tokens = (usage.prompt_tokens or 0) + (usage.output_tokens or 0)
        self._out[-1] += cost(tokens)

    def _on_response_trailers(self, part: Received) -> None:
        if part.served:
            self._served(part.served)
        if not self._observed:
            rename = self._renames()
            if rename is not None and self._response_mode == wire.FULL_DUPLEX:
                rest = rename.feed(b"", True)
                self._out += wire.pieces(wire.RESPONSE_BODY, rest, False) if rest else []
            self._out.append(wire.CONTINUE[wire.RESPONSE_TRAILERS])
        if self._open:
            self._tell_cost()
            self._ended()

    # The ticket

    def _predict_end(self) -> None:
        """Nobody will see the end: the ticket's is predicted."""
        ticket = self._decision.ticket
        self._picker.predicted.watch(ticket, self._slot, monotonic(), end=True)
        self._open = False
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
