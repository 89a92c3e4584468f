"""One external processing stream: an HTTP request comes in messages, a choice goes out. Sans-I/O.

Owns the order of messages. What a gateway sends and when an answer is due depends on its request
body mode, which the first message tells (`protocol_config`; older gateways: `ext_proc.body_mode`):

    mode              headers                body                         trailers
    NONE              choice                 -                            go on
    BUFFERED(_PARTIAL) go on                 choice, new body if changed  go on
    STREAMED          choice (1)             go on, each chunk            go on
    FULL_DUPLEX       nothing yet            at its end: choice, then     end the body too
                                             the body in pieces
    GRPC              choice                 each message back            go on

(1) by headers and load: Envoy waits for this answer before it sends a byte of the body, unless
    send_body_without_waiting_for_header_response is set; then the choice waits for the body's end.

Headers with end_of_stream are a whole request in every mode. A whole request on a path of inference
names a model, or it is refused. Where nobody is ready the gateway hears 503, not the router's last
resort: it has a way of its own to fall back. In observability mode nothing is ever answered.
Anything out of turn ends the stream with INVALID_ARGUMENT and a metric. Cost: about 12 us a request
of 4 KB, of which the decision is 3 and the parse 2.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

import msgspec

from warmlane.envoy import messages as wire
from warmlane.envoy.picker import DESTINATION, Way
from warmlane.envoy.reply import CANCELLED, Reply
from warmlane.envoy.streams import OK, RESOURCE_EXHAUSTED
from warmlane.router.decide import LAST_RESORT, RETRY_AFTER_S
from warmlane.router.errors import NoReplica, RequestError, RouterError
from warmlane.router.lane import Prepared
from warmlane.router.requests import kind_of, objective_of, parse, rewrite_model
from warmlane.router.types import Decision, Kind, Request

# Phases of the request half.
START: Final = 0  # no message yet
BODY: Final = 1  # headers seen, the choice waits for the body
CHOSEN: Final = 2  # the choice is answered; what still comes passes
REFUSED: Final = 3  # answered in place of an engine

# Chunks of a STREAMED body that is held back beyond this let Envoy's own buffer run full, and it
# would never send the rest: Envoy's listeners buffer 32 KiB by its edge-proxy advice.
STREAMED_MOST: Final = 16_384
_POST: Final = (b"POST", b"")  # of a gateway that skips headers nothing is known
_TEST_HEADER: Final = b"test-epp-endpoint-selection"
_REWRITES: Final = (b"x-llm-d-model-name-rewrite", b"x-gateway-model-name-rewrite")


class Session(Reply):
    """See the module. A `StreamHandler`, made for each stream by `methods.methods`."""

    __slots__ = ()

    def receive(self, message: bytes) -> None:
        if self.status is not None:
            return
        try:
            part = wire.receive(message)
        except wire.WireError as error:
            self._refuse_stream("unreadable", str(error))
            return
        try:
            _RECEIVERS[part.kind](self, part)
        except Exception:  # noqa: BLE001 - one stream fails, the server goes on; logged with trace
            self._crashed()

    def _on_nothing(self, part: wire.Received) -> None:
        """A message without a part that is known here: of a later protocol."""
        self._refuse_stream("unknown_message", "no request member that is known here")

    # Request messages

    def _on_request_headers(self, part: wire.Received) -> None:
        if self._phase != START:
            self._refuse_stream("out_of_turn", "request headers a second time")
            return
        mode = self._begin(part)
        if part.end_of_stream:
            self._choose(wire.REQUEST_HEADERS, b"")
        elif mode == wire.FULL_DUPLEX:
            pass
        elif mode in (wire.BUFFERED, wire.BUFFERED_PARTIAL):
            if not self._observed:
                self._out.append(wire.CONTINUE[wire.REQUEST_HEADERS])
        elif mode == wire.STREAMED and (part.early_body or self._observed):
            pass
        else:
            self._choose(wire.REQUEST_HEADERS, b"", bodiless=True)

    def _begin(self, part: wire.Received) -> int:
        """The first message of the request; its body mode."""
        self._phase = BODY
        self._request_head = part
        self._internal = part.internal
        self._observed = part.observability
        if part.request_mode >= 0:
            self._request_mode, self._response_mode = part.request_mode, part.response_mode
        else:
            self._request_mode = self._picker.body_mode
        return self._request_mode

    def _on_request_body(self, part: wire.Received) -> None:
        if self._phase == START:  # the gateway skips headers
            self._begin(part)
        mode, last = self._request_mode, part.end_of_stream
        if self._phase == BODY:
            if mode in (wire.BUFFERED, wire.BUFFERED_PARTIAL):
                self._choose(wire.REQUEST_BODY, part.body)
            elif self._hold(part.body):
                if last:
                    self._choose(wire.REQUEST_HEADERS, self._whole())
                elif mode == wire.STREAMED and self._held > STREAMED_MOST and not self._observed:
                    self._choose(wire.REQUEST_HEADERS, b"", bodiless=True)
        elif self._phase == CHOSEN and not self._observed:
            if mode >= wire.FULL_DUPLEX:
                self._out += wire.pieces(wire.REQUEST_BODY, part.body, last)
            else:
                self._out.append(wire.CONTINUE[wire.REQUEST_BODY])

    def _on_request_trailers(self, part: wire.Received) -> None:
        if self._phase == START:
            self._begin(part)
        if self._phase == BODY:
            self._trailers = True
            self._choose(wire.REQUEST_HEADERS, self._whole())
        if self._phase == CHOSEN and not self._observed:
            self._out.append(wire.CONTINUE[wire.REQUEST_TRAILERS])

    def _whole(self) -> bytes:
        """The held body. Envoy ends a body with an empty chunk: the one before it is no copy."""
        chunks = self._chunks
        if len(chunks) == 1 or (len(chunks) == 2 and not chunks[1]):
            return chunks[0]
        return b"".join(chunks)

    def _hold(self, chunk: bytes) -> bool:
        """Keep a chunk until the body is whole. False: it is too much, and that is answered."""
        picker, size = self._picker, len(chunk)
        self._chunks.append(chunk)
        self._held += size
        picker.buffered += size
        if self._held > picker.body_bytes:
            picker.metrics.limit_reached("body_bytes")
            self._refuse(RequestError(413, "the request body is too large", code="body_too_large"))
            return False
        if picker.buffered > picker.buffered_most:
            picker.metrics.limit_reached("buffered_bytes")
            self._let_go()
            self._end_with(RESOURCE_EXHAUSTED, "too many request bodies are held")
            return False
        return True

    # The choice

    def _choose(self, kind: int, body: bytes, bodiless: bool = False) -> None:
        """The request is whole, or as whole as it gets: decide, and answer the message `kind`.

        bodiless: there is a body, which is not seen; nothing about it may be changed.
        """
        picker, head = self._picker, self._request_head
        assert head is not None, "begun"
        method = "POST" if head.method in _POST else head.method.decode("latin-1")
        shadow, rand = picker.shadow, picker.rand(48)
        acts = shadow.always or shadow.acts(rand >> 32)
        watching = self._observed or not (acts or shadow.mode == "least-requests")
        try:
            request, out = parse(
                method, head.path, head.headers, body, transfer_params=picker.transfer_params
            )
            self._stream = request.stream
            self._kind = kind_of(head.path) if bodiless else request.kind
            if head.internal is not None or head.subset is not None or picker.test_headers:
                request = self._steered(request, head)
            if not bodiless and method == "POST" and not (body and request.model):
                self._check_model(head.path, body)
            prepared = picker.router.prepare(request, rand)
            self._ways = picker.ways(prepared.target.pool)
            now = monotonic()
            if acts and not watching:
                decision = self._decision = prepared.lane.decide(prepared, now, rand)
                self._slot, self._open = decision.choices[0], True
            else:
                decision = self._decide_beside(prepared, now, rand, watching)
            if decision.fallback == LAST_RESORT and not watching:
                raise self._nobody_ready(decision, now)
        except RouterError as error:
            self._kind = kind_of(head.path)
            if watching:
                self._pass(kind, body)  # not ours to refuse
            else:
                self._refuse(error)
            return
        done = monotonic()
        picker.metrics.decision(decision.pool, done - now)
        if watching:
            self._pass(kind, body)
            return
        prepared.lane.sent(decision.ticket, self._slot, done)
        way = self._way = self._ways.fresh()[self._slot]
        assert way is not None, "a decision names members only"
        model = decision.model
        if not model and head.internal is not None and self._forced(head):
            model = request.model
        if not model:
            pass
        elif bodiless:
            picker.metrics.fallback(decision.pool, "model_not_rewritten")
        elif out and request.rewrite_model:
            out = rewrite_model(out, model)
        self._answer_choice(kind, way, body, out, bodiless)

    def _answer_choice(self, kind: int, way: Way, body: bytes, out: bytes, bodiless: bool) -> None:
        """Queue the choice, and the body as it goes on."""
        picker, mode, last = self._picker, self._request_mode, not self._trailers
        endpoint = way.endpoint
        if picker.ordered:
            endpoint = picker.endpoint(self._decision, self._ways.fresh(), way)
        mutation = way.mutation
        if self._internal is not None:
            mutation += self._removals(way)
        changed = out is not body
        self._phase = CHOSEN
        queue = self._out
        if kind == wire.REQUEST_BODY:  # buffered
            length, new = (len(out), out) if changed else (-1, None)
            queue.append(wire.answer(kind, endpoint, length, mutation, new))
        elif bodiless or (not body and not self._chunks):
            queue.append(wire.answer(kind, endpoint, -1, mutation))
            self._release_chunks()
        elif mode == wire.FULL_DUPLEX:
            # With trailers the body goes on in chunks: a length would make HTTP/1.1 drop them.
            length = len(out) if last else -1
            queue.append(wire.answer(kind, endpoint, length, mutation))
            queue += wire.pieces(wire.REQUEST_BODY, out, last)
        else:
            length = len(out) if changed else -1
            queue.append(wire.answer(kind, endpoint, length, mutation))
            if changed:
                empty = wire.answer(wire.REQUEST_BODY, b"", -1, b"", b"")
                queue.append(wire.answer(wire.REQUEST_BODY, b"", -1, b"", out))
                queue += [empty] * (len(self._chunks) - 1)
            else:
                self._release_chunks()
        self._let_go()
        # Not while a response may come in full duplex: a chunk of an early answer (a 401 before
        # the body was read) could be on its way here already, and Envoy keeps no copy of it. On
        # Envoy 1.40 up to 5 % of answers that race with a 4 KB body then arrive empty.
        safe = self._response_mode < wire.FULL_DUPLEX
        if picker.level == 0 and safe and not picker.test_headers:
            self._leave()

    def _release_chunks(self) -> None:
        """Answer chunks that were held, in the mode's own way, each as it came."""
        if self._request_mode >= wire.FULL_DUPLEX:
            for chunk in self._chunks:
                self._out += wire.pieces(wire.REQUEST_BODY, chunk, False)
        else:
            self._out += [wire.CONTINUE[wire.REQUEST_BODY]] * len(self._chunks)

    def _removals(self, way: Way) -> bytes:
        """The client's internal headers go, but for those that our own replace."""
        kept = (DESTINATION, b"x-data-parallel-rank") if way.mutation else (DESTINATION,)
        return b"".join(
            [wire.remove_header(name) for name in self._internal or () if name not in kept]
        )

    def _steered(self, request: Request, head: wire.Received) -> Request:
        """With the subset and the model that the gateway asks for."""
        picker, headers = self._picker, head.headers
        entries: list[str] | None = head.subset if picker.subset else None
        if picker.test_headers and _TEST_HEADER in headers:
            named = headers[_TEST_HEADER].decode("latin-1").split(",")
            entries = [name.strip() for name in named if name.strip()]
        if entries is not None:
            request = msgspec.structs.replace(request, subset=picker.subset_of(entries))
        if head.internal is not None and (objective := objective_of(headers)):
            request = msgspec.structs.replace(request, objective=objective)
        model = self._forced(head)
        return msgspec.structs.replace(request, model=model) if model else request

    def _forced(self, head: wire.Received) -> str:
        """The model that a header asks for in place of the body's, "" for none."""
        if head.internal is None:
            return ""
        named = next((head.headers[name] for name in _REWRITES if name in head.headers), b"")
        return named.decode("utf-8", "replace")

    def _check_model(self, path: str, body: bytes) -> None:
        """Raises RequestError 400: a whole request on a path of inference that names no model."""
        if self._request_mode == wire.NONE or kind_of(path) is Kind.OTHER:
            return
        if not body:
            raise RequestError(400, "the request body is empty", code="empty_body")
        text = "the request body must name a model, as a string"
        raise RequestError(400, text, param="model", code="missing_model")

    def _nobody_ready(self, decision: Decision, now: float) -> NoReplica:
        """What the gateway hears in place of a last resort, whose ticket is closed here."""
        self._open = False
        self._picker.router.close(decision.ticket, CANCELLED, now)
        text = f"no replica of pool {decision.pool!r} is ready"
        return NoReplica(text, retry_after_s=RETRY_AFTER_S)

    def _decide_beside(self, prepared: Prepared, now: float, rand: int, watching: bool) -> Decision:
        """Decide while somebody else's choice counts: the gateway's where we are `watching`, else
        that of least requests. Both are compared."""
        shadow = self._picker.shadow
        other = -1 if watching else shadow.other(prepared, now, rand)
        decision = self._decision = prepared.lane.decide(prepared, now, rand)
        self._open = True
        self._beside = shadow.beside(prepared, decision)
        self._slot = other  # -1: until the gateway says who serves
        if not watching:
            decision = self._decision = shadow.instead(decision, self._beside, other, now)
            self._told(other)
        return decision

    def _pass(self, kind: int, body: bytes) -> None:
        """Answer without a choice: the request goes its way as it came."""
        self._phase = CHOSEN
        if not self._observed:
            queue, last = self._out, not self._trailers
            queue.append(wire.CONTINUE[kind])
            if kind == wire.REQUEST_HEADERS and self._chunks:
                if self._request_mode >= wire.FULL_DUPLEX:
                    queue += wire.pieces(wire.REQUEST_BODY, body, last)
                else:
                    self._release_chunks()
        self._let_go()

    def _leave(self) -> None:
        """Level 0: the stream ends with the choice; the end of the answer is predicted."""
        if self._open:
            self._predict_end()
        self._end_with(OK)

    def _refuse(self, error: RouterError) -> None:
        """Answer the client in place of an engine."""
        if isinstance(error, RequestError):
            reason = error.code or str(error.status)
        else:
            reason = "no_replica" if isinstance(error, NoReplica) else "error"
        self._picker.metrics.rejected(reason)
        self._phase = REFUSED
        self._let_go()
        _, message = wire.refusal(error, self._kind)
        self._out.append(message)
        self._end_with(OK)


# By the kind of the message, see `proc_wire`.
_RECEIVERS: Final = (
    Session._on_nothing,
    Session._on_nothing,
    Session._on_request_headers,
    Session._on_response_headers,
    Session._on_request_body,
    Session._on_response_body,
    Session._on_request_trailers,
    Session._on_response_trailers,
)
