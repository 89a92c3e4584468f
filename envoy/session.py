"""One external processing stream: an HTTP request comes in messages, a choice goes out. Sans-I/O.

Owns the order of messages. What a gateway sends and when an answer is due depends on its request
body mode, which the first message tells (`protocol_config`; older gateways: `ext_proc.body_mode`):

    mode              headers                body                         trailers
    NONE              choice                 -                            go on
    BUFFERED(_PARTIAL) go on                 choice, new body if changed  go on
    STREAMED          choice (1)             go on, each chunk            go on
    STREAMED, early   nothing yet            at its end, or at            choice
                                             `streamed_bytes` (2)
    FULL_DUPLEX       nothing yet            at its end: choice, then     end the body too
                                             the body in pieces
    GRPC              choice                 each message back            go on

(1) by headers and load: Envoy waits for this answer before it sends a byte of the body. With
    `ask_for_body` the answer asks for BUFFERED_PARTIAL instead, in NONE too, and the choice waits.
(2) by the start of the body: Envoy sends on only what fits its buffer until its headers are
    answered. The same for a BUFFERED_PARTIAL body that outgrows that buffer.

Headers with end_of_stream are a whole request in every mode. A whole request on a path of inference
names a model, or it is refused. Where nobody is ready the gateway hears 503, not the router's last
resort: it has a way of its own to fall back. In observability mode nothing is ever answered.
Anything out of turn ends the stream with INVALID_ARGUMENT and a metric.

The base of all (`_core.proc_course.Course`) has the state, and takes the common course of a request
in full duplex by itself; what it does not take comes here, message by message. Cost: about 12 us a
request of 4 KB, of which the decision is 3 and the parse 2; 4 us on the common course.
"""

from __future__ import annotations

from typing import Final

from warmlane.envoy import messages as wire
from warmlane.envoy.choice import CHOSEN, NOTHING, START, START_OF_IT, Choice
from warmlane.envoy.queued import BODY, WAITING
from warmlane.envoy.streams import RESOURCE_EXHAUSTED
from warmlane.router.errors import RequestError

# Messages that are kept while token ids are on their way, which takes 100 ms at most.
LATE_MOST: Final = 64


class Session(Choice):
    """See the module. A `StreamHandler`, made for each stream by `methods.methods`."""

    __slots__ = ()

    def _receive(self, part: wire.Received) -> None:
        if self._phase == WAITING:
            self._wait_with(part)
        else:
            _RECEIVERS[part.kind](self, part)

    def _unreadable(self, error: wire.WireError) -> None:
        self._refuse_stream("unreadable", str(error))

    def _wait_with(self, part: wire.Received) -> None:
        """A message before its turn: trailers, or the answer where we only look on."""
        self._late.append(part)
        if len(self._late) > LATE_MOST:
            self._end_with(RESOURCE_EXHAUSTED, "too many messages before the choice")

    def _chosen(self) -> None:
        late, self._late = self._late, []
        for part in late:
            if self.status is None:
                _RECEIVERS[part.kind](self, part)

    def _on_nothing(self, part: wire.Received) -> None:
        """A message without a part that is known here: of a later protocol."""
        self._refuse_stream("unknown_message", "no request member that is known here")

    def _on_response_headers(self, part: wire.Received) -> None:
        asked = self._picker.ask_for_body and self._request_mode == wire.BUFFERED_PARTIAL
        if asked and self._phase == BODY:  # it went on without the body, and without a choice
            self._picker.metrics.count("warmlane_ext_proc_protocol_errors_total", "body_not_sent")
        super()._on_response_headers(part)

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
        elif self._picker.ask_for_body and self._may_ask():
            self._request_mode = wire.BUFFERED_PARTIAL
            asked = wire.override(self._picker.level, self._response_mode)
            self._out.append(wire.answer(wire.REQUEST_HEADERS, b"", tail=asked))
        else:
            self._choose(wire.REQUEST_HEADERS, b"", NOTHING)

    def _may_ask(self) -> bool:
        """Does Envoy heed another mode? Not while it copies, nor beside full duplex."""
        return not self._observed and self._response_mode < wire.FULL_DUPLEX

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
            if mode == wire.BUFFERED or (mode == wire.BUFFERED_PARTIAL and last):
                self._choose(wire.REQUEST_BODY, part.body)
            elif mode == wire.BUFFERED_PARTIAL:
                self._choose(wire.REQUEST_BODY, part.body, START_OF_IT)
            elif self._hold(part.body):
                if last:
                    self._choose_whole()
                elif mode != wire.STREAMED or self._observed:
                    pass
                elif self._held > self._picker.streamed_bytes:
                    self._choose(wire.REQUEST_HEADERS, self._whole(), START_OF_IT)
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
            self._choose_whole()
        if self._phase == CHOSEN and not self._observed:
            self._out.append(wire.CONTINUE[wire.REQUEST_TRAILERS])
        elif self._phase == WAITING:
            self._late.append(part)

    def _choose_whole(self) -> None:
        self._choose(wire.REQUEST_HEADERS, self._whole())

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
