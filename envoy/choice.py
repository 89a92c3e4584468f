"""The choice of one external processing stream: a whole request in, the gateway's orders out.

Between `Reply`, which owns the response half, and `Session`, which owns the order of messages and
says when a request is as whole as it gets. Parses, waits for token ids where a pool is exact and
they would be used, decides, waits for the load of an adapter, and puts the answer into the shape of
the request's body mode.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from warmlane._core.leads import Picked
from warmlane.envoy import messages as wire
from warmlane.envoy.extras import SESSION_TOKEN, asks_for_cached, scores
from warmlane.envoy.partial import parse_start, reckon, renamed, told_length, with_told_model
from warmlane.envoy.picker import DESTINATION, Way
from warmlane.envoy.queued import BODY, Queued
from warmlane.envoy.rename import Rename
from warmlane.envoy.reply import CANCELLED, FAILED
from warmlane.envoy.streams import OK
from warmlane.router.admission_read import marked
from warmlane.router.errors import NoReplica, RequestError, RouterError
from warmlane.router.explain import Explanation, explain
from warmlane.router.feeds.adapters import not_loaded
from warmlane.router.lane import Prepared
from warmlane.router.requests import kind_of, objective_of, parse, rewrite_model
from warmlane.router.types import Decision, Kind, Request

if TYPE_CHECKING:
    from warmlane.envoy.picker import Loading, Waiting
    from warmlane.router.pool import Pool

# Phases of the request half; `_core.proc_course` knows them too.
START: Final = 0  # no message yet
CHOSEN: Final = 3  # the choice is answered; what still comes passes
REFUSED: Final = 4  # answered in place of an engine

_KINDS: Final = tuple(Kind)  # in the order of `_core.scan`
# How much of a request's body is seen.
WHOLE: Final = 0
START_OF_IT: Final = 1
NOTHING: Final = 2

_POST: Final = (b"POST", b"")  # of a gateway that skips headers nothing is known
_TEST_HEADER: Final = b"test-epp-endpoint-selection"
_REWRITES: Final = (b"x-llm-d-model-name-rewrite", b"x-gateway-model-name-rewrite")


class _How(NamedTuple):
    """What of a choice does not depend on the request's own content. See `Session._choose`.

    acts: warmlane's choice counts. watching: the gateway's does.
    """

    kind: int
    body: bytes
    seen: int
    rand: int
    acts: bool
    watching: bool
    told: Explanation | None = None  # where each candidate's total is told


class Choice(Queued):
    """See the module. Base of `Session`."""

    __slots__ = ()

    def _choose(self, kind: int, body: bytes, seen: int = WHOLE) -> None:
        """The request is whole, or as whole as it gets: decide, and answer the message `kind`.

        seen: how much of the body that is. What is not seen cannot be changed.
        """
        picker, head = self._picker, self._request_head
        assert head is not None, "begun"
        method = "POST" if head.method in _POST else head.method.decode("latin-1")
        shadow, rand = picker.shadow, picker.rand(48)
        acts = shadow.always or shadow.acts(rand >> 32)
        watching = self._observed or not (acts or shadow.mode == "least-requests")
        how = _How(kind, body, seen, rand, acts, watching)
        try:
            if seen == START_OF_IT:
                request, out = parse_start(method, head, body), body
            else:
                request, out = parse(
                    method, head.path, head.headers, body, transfer_params=picker.transfer_params
                )
            self._stream, self._asked = request.stream, request.model
            self._kind = request.kind if seen == WHOLE else kind_of(head.path)
            if seen != WHOLE:
                request = with_told_model(request, head)
            if head.internal is not None or head.subset is not None or picker.steers:
                request = self._steered(request, head)
            if seen == WHOLE and method == "POST" and not (body and request.model):
                self._check_model(head.path, body)
            if picker.admission is not None and not watching:
                request = marked(request, head.headers, body, picker.admission)
        except RouterError as error:
            self._not_chosen(error, how)
            return
        if picker.tokens is not None and seen == WHOLE:
            self._waiting = picker.with_ids(request, out, partial(self._with_ids, out, how))
            if self._waiting is not None:
                self._await(body)
                return
        self._decide(request, out, how)

    def _with_ids(self, out: bytes, how: _How, waiting: Waiting) -> None:
        """The token ids came, or the time for them is over."""
        if self._waiting is not waiting or self.status is not None:
            return
        self._waiting, self._phase = None, BODY
        try:
            self._decide(waiting.result(), out, how)
            self._chosen()
        except Exception:  # noqa: BLE001 - as in `receive`
            self._crashed()
        assert self._wake is not None, "the stream is open"
        self._wake()

    def _decide(self, request: Request, out: bytes, how: _How) -> None:
        """Choose a replica for a request of which all is known, and answer."""
        picker = self._picker
        kind, body, seen, rand, acts, watching, _ = how
        try:
            prepared = picker.router.prepare(request, rand)
            if seen == START_OF_IT:
                assert self._request_head is not None, "begun"
                reckon(prepared, self._request_head)
            self._ways = picker.ways(prepared.target.pool)
            now = monotonic()
            if picker.options.endpoint_scores:
                how = how._replace(told=explain(prepared, now, rand))
            if acts and not watching:
                gate = prepared.lane.gate
                if gate is None or not gate.active:
                    decision = prepared.lane.decide(prepared, now, rand)
                else:
                    told = partial(self._admitted, prepared.lane.pool, request, out, how)
                    found = self._offer(gate, prepared, now, rand, told, body)
                    if found is None:
                        return
                    decision = found
                self._decision, self._slot, self._open = decision, decision.choices[0], True
            else:
                decision = self._decide_beside(prepared, now, rand, watching)
        except RouterError as error:
            self._not_chosen(error, how)
            return
        picker.metrics.decision(decision.pool, monotonic() - now)
        if watching:
            self._pass(kind, body)
            return
        self._decided(prepared.lane.pool, request, out, how)

    def _decided(self, pool: Pool, request: Request, out: bytes, how: _How) -> None:
        """The replica is chosen; it may have to load the request's adapter."""
        picker, decision = self._picker, self._decision
        cold = picker.options.conditional and not decision.hit_tokens[0]
        if cold and asks_for_cached(self._request_head):
            self._open = False
            picker.router.close(decision.ticket, CANCELLED, monotonic())
            self._refuse(RequestError(412, "no replica has this prompt", code="not_available"))
            return
        if decision.adapter:
            then = partial(self._with_adapter, pool, request, out, how)
            self._waiting = picker.loading(pool, decision, then)
            if self._waiting is not None:
                self._await(how.body)
                return
        self._send(request, out, how, monotonic())

    def _with_adapter(
        self, pool: Pool, request: Request, out: bytes, how: _How, loading: Loading
    ) -> None:
        """The load of the request's adapter ended."""
        if self._waiting is not loading or self.status is not None:
            return
        self._waiting, self._phase = None, BODY
        decision, now = self._decision, monotonic()
        try:
            slot = loading.result()
            if slot < 0:
                self._open = False
                self._picker.router.close(decision.ticket, FAILED, now)
                self._not_chosen(not_loaded(pool, decision.adapter, request.model), how)
            else:
                self._slot = slot
                self._send(request, out, how, now)
            self._chosen()
        except Exception:  # noqa: BLE001 - as in `receive`
            self._crashed()
        assert self._wake is not None, "the stream is open"
        self._wake()

    def _send(self, request: Request, out: bytes, how: _How, now: float) -> None:
        """The replica is chosen: tell the gateway."""
        picker, head, decision = self._picker, self._request_head, self._decision
        body, seen = how.body, how.seen
        picker.router.sent(decision.ticket, self._slot, now)
        way = self._way = self._ways.fresh()[self._slot]
        assert way is not None and head is not None, "a decision names members only"
        model = decision.model
        if not model and head.internal is not None and self._forced(head):
            model = request.model
        if not model:
            pass
        elif seen != WHOLE:
            out = renamed(body, model)
            if out is body:
                picker.metrics.fallback(decision.pool, "model_not_rewritten")
        elif out and request.rewrite_model:
            out = rewrite_model(out, model)
        if picker.level == 2 and model and model != self._asked:
            self._rename = Rename(model, self._asked)
        self._answer_choice(how, way, out)

    def _not_chosen(self, error: RouterError, how: _How) -> None:
        """Nobody can be chosen: the client hears why, unless another choice counts."""
        assert self._request_head is not None, "begun"
        self._kind = kind_of(self._request_head.path)
        if how.watching:
            self._pass(how.kind, how.body)  # not ours to refuse
        else:
            self._refuse(error)

    def _answer_choice(self, how: _How, way: Way, out: bytes) -> None:
        """Queue the choice, and the body as it goes on."""
        kind, body, seen = how.kind, how.body, how.seen
        picker, mode, last = self._picker, self._request_mode, not self._trailers
        endpoint = way.endpoint
        if picker.ordered:
            endpoint = picker.endpoint(self._decision, self._ways.fresh(), way)
        mutation = way.mutation
        if self._internal is not None:
            mutation += self._removals(way)
        tail = b"" if how.told is None else scores(how.told, self._ways, self._slot)
        changed = out is not body
        self._phase = CHOSEN
        queue = self._out
        if kind == wire.REQUEST_BODY:  # buffered
            if changed and mode == wire.BUFFERED_PARTIAL:
                # Envoy 1.40 sets no length in this mode, and takes the old one away only where the
                # mode is its config's: without it the body goes on in chunks.
                mutation += wire.remove_header(b"content-length")
                queue.append(wire.answer(kind, endpoint, -1, mutation, out, tail))
            else:
                length, new = (len(out), out) if changed else (-1, None)
                queue.append(wire.answer(kind, endpoint, length, mutation, new, tail))
        elif seen == NOTHING or (not body and not self._chunks):
            queue.append(wire.answer(kind, endpoint, -1, mutation, None, tail))
            self._release_chunks()
        elif mode == wire.FULL_DUPLEX:
            # With trailers the body goes on in chunks: a length would make HTTP/1.1 drop them.
            length = len(out) if last else -1
            queue.append(wire.answer(kind, endpoint, length, mutation, None, tail))
            queue += wire.pieces(wire.REQUEST_BODY, out, last)
        else:
            length = self._length(how, out) if changed else -1
            queue.append(wire.answer(kind, endpoint, length, mutation, None, tail))
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

    def _length(self, how: _How, out: bytes) -> int:
        """The content-length of a changed body, -1 where nobody knows it."""
        if how.seen == WHOLE:
            return len(out)
        assert self._request_head is not None, "begun"
        told = told_length(self._request_head)
        return told + len(out) - len(how.body) if told >= 0 else -1

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
        if picker.options.session_token and SESSION_TOKEN in headers and entries is None:
            kept = picker.subset_of_token(headers[SESSION_TOKEN])
            request = msgspec.structs.replace(request, subset=kept)
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

    def _adopt(self, picked: Picked, kind: int) -> None:
        """Go on with a request that the compiled course decided and answered."""
        head = self._request_head
        assert head is not None, "begun"
        self._kind = _KINDS[kind]
        request = Request(kind=self._kind, path=head.path, stream=self._stream)
        decision = self._decision = picked.lead.desk.adopt(picked, request)
        self._slot, self._open = decision.choices[0], True
        self._ways = picked.lead.side
        self._way = self._ways.fresh()[self._slot]

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
            reason = (error.code or "no_replica") if isinstance(error, NoReplica) else "error"
        self._picker.metrics.rejected(reason)
        self._phase = REFUSED
        self._let_go()
        _, message = wire.refusal(error, self._kind)
        self._out.append(message)
        self._end_with(OK)
