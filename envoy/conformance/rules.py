"""What Envoy makes of a picker's replies, for one direction of one HTTP request. Sans-I/O.

Follows Envoy's ext_proc filter (processor_state.cc, mutation_utils.cc): which reply is awaited in
which state, which mutations count, and what then goes on to the other side. A reply that Envoy
would call spurious, or refuse, is a line in `broken`.
"""

from __future__ import annotations

import re

from warmlane.envoy.conformance.target import BodyMode
from warmlane.envoy.conformance.wire import HeaderChange, Headers, Reply

# Replies above it do not fit Envoy's default HTTP/2 window at once; the API recommends to stay
# below it (ProcessingMode.FULL_DUPLEX_STREAMED).
MESSAGE_BYTES = 65_536
ADD_IF_ABSENT, OVERWRITE_IF_EXISTS = 1, 3  # HeaderAppendAction
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z:-]+")
_ROUTING = (":method", ":authority", ":scheme", "host")  # ignored unless allow_all_routing


class Side:
    """The request or the response. Feed what was sent and what came; read what Envoy would do."""

    def __init__(self, name: str, mode: BodyMode) -> None:
        self.name = name
        self.mode = mode
        self.headers: Headers = []
        self.body = bytearray()
        self.trailers: Headers | None = None
        self.broken: list[str] = []
        self.ignored: list[str] = []
        self.cleared_route_cache = False
        self.largest_reply = 0
        self.pieces: list[int] = []
        self.headers_sent = self.headers_answered = False
        self.bodies_sent = self.bodies_answered = 0
        self.trailers_sent = self.trailers_answered = False
        self.end_sent = self.end_back = False
        self.past_headers = False
        self._chunks: list[bytes] = []

    # What the gateway sends

    def sent_headers(self, headers: Headers, end: bool) -> None:
        self.headers, self.headers_sent, self.end_sent = list(headers), True, end

    def sent_body(self, data: bytes, end: bool) -> None:
        self.bodies_sent += 1
        self.end_sent = end
        self._chunks.append(data)

    def sent_trailers(self, trailers: Headers) -> None:
        self.trailers, self.trailers_sent = list(trailers), True

    @property
    def waits_for(self) -> str:
        """What Envoy would wait for now; "" when it needs nothing more."""
        if self.headers_sent and not self.headers_answered:
            return f"an answer to the {self.name} headers"
        if self.mode is BodyMode.FULL_DUPLEX_STREAMED:
            if self.trailers_sent:
                return "" if self.trailers_answered else f"an answer to the {self.name} trailers"
            if self.bodies_sent and self.end_sent and not self.end_back:
                return f"the end of the {self.name} body"
            return ""
        if self.bodies_answered < self.bodies_sent:
            return f"an answer to the {self.name} body"
        if self.trailers_sent and not self.trailers_answered:
            return f"an answer to the {self.name} trailers"
        return ""

    # What the picker answers

    def on_reply(self, reply: Reply) -> None:
        self.largest_reply = max(self.largest_reply, reply.size)
        part = reply.kind.removeprefix(f"{self.name}_")
        if part == "headers":
            self._on_headers(reply)
        elif part == "body":
            self._on_body(reply)
        else:
            self._on_trailers(reply)

    def _on_headers(self, reply: Reply) -> None:
        if not self.headers_sent or self.headers_answered:
            self.broken.append(f"spurious: a second or unasked answer to {self.name} headers")
            return
        self.headers_answered = True
        self._mutate(reply, self.headers)
        self.cleared_route_cache |= reply.clear_route_cache
        if self.mode not in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL) or self.end_sent:
            self.past_headers = True
        if reply.streamed and self.mode is not BodyMode.FULL_DUPLEX_STREAMED:
            self.broken.append("streamed_response in an answer to headers")
        if reply.replaces_all and reply.body is not None:
            self.body[:] = reply.body
            self.end_back = True

    def _on_body(self, reply: Reply) -> None:
        if self.mode is BodyMode.FULL_DUPLEX_STREAMED:
            self._on_duplex_body(reply)
        elif self.bodies_answered >= self.bodies_sent:
            self.broken.append(f"spurious: an answer to a {self.name} body that was not sent")
        elif reply.streamed:
            self.broken.append(
                f"spurious: streamed_response in body mode {self.mode.name} (Envoy takes it in "
                "FULL_DUPLEX_STREAMED alone)"
            )
        else:
            self._on_whole_body(reply)

    def _on_duplex_body(self, reply: Reply) -> None:
        if not self.headers_answered:
            self.broken.append("spurious: a body answer before the headers were answered")
        elif not self.bodies_sent or self.end_back or self.trailers_answered:
            self.broken.append(f"spurious: a {self.name} body answer after its end, or unasked")
        elif not reply.streamed:
            self.broken.append(
                "spurious: a body answer without streamed_response in FULL_DUPLEX_STREAMED"
            )
        else:
            self.pieces.append(len(reply.body or b""))
            self.body += reply.body or b""
            if reply.end_of_stream and not self.end_sent:
                self.broken.append(
                    "end_of_stream in a body answer before the body's own end was received"
                    if not self.trailers_sent
                    else "end_of_stream in a body answer although trailers follow"
                )
            self.end_back |= reply.end_of_stream

    def _on_whole_body(self, reply: Reply) -> None:
        """BUFFERED, BUFFERED_PARTIAL, STREAMED: one answer a message, in order."""
        chunk = self._chunks[self.bodies_answered]
        self.bodies_answered += 1
        self.end_back = self.end_sent and self.bodies_answered == self.bodies_sent
        if not self.past_headers:
            self._mutate(reply, self.headers)
        elif reply.set_headers or reply.remove_headers:
            self.ignored.append("header mutations in a body answer: the headers are gone")
        self.cleared_route_cache |= reply.clear_route_cache
        data = chunk if reply.body is None else reply.body
        if self.mode is BodyMode.BUFFERED and reply.body is not None:
            told = _first(self.headers, "content-length")
            if told is not None and told != str(len(data)).encode():
                self.broken.append(
                    f"refused: content-length {told.decode('latin-1')} but the new body has "
                    f"{len(data)} bytes"
                )
        self.body += data
        self.past_headers = True

    def _on_trailers(self, reply: Reply) -> None:
        if not self.trailers_sent or self.trailers_answered:
            self.broken.append(f"spurious: an answer to {self.name} trailers that were not sent")
            return
        self.trailers_answered = True
        if self.trailers is not None:
            self._mutate(reply, self.trailers)
        self.end_back = True

    def _mutate(self, reply: Reply, pairs: Headers) -> None:
        """HeaderMutation on header or trailer pairs, in place: removals first, as Envoy does."""
        for name in reply.remove_headers:
            lower = name.lower()
            if not _NAME.fullmatch(name.encode()):
                self.broken.append(f"refused: invalid header name to remove: {name!r}")
            elif lower.startswith(":") or lower == "host":
                self.ignored.append(f"removal of {lower}")
            else:
                pairs[:] = [pair for pair in pairs if pair[0] != lower]
        for change in reply.set_headers:
            self._set(change, pairs)

    def _set(self, change: HeaderChange, pairs: Headers) -> None:
        lower = change.name.lower()
        if change.both:
            self.broken.append(f"refused: value and raw_value both set for {lower}")
        elif not _NAME.fullmatch(change.name.encode()) or re.search(rb"[\r\n\0]", change.value):
            self.broken.append(f"refused: invalid header {lower!r}: {change.value!r}")
        elif lower in _ROUTING or lower.startswith("x-envoy"):
            self.ignored.append(f"mutation of {lower}")
        else:
            if not change.raw:
                self.broken.append(
                    f"{lower} comes in `value`: Envoy reads `raw_value` and sets it empty"
                )
            there = any(pair[0] == lower for pair in pairs)
            if (change.action == ADD_IF_ABSENT and there) or (
                change.action == OVERWRITE_IF_EXISTS and not there
            ):
                return
            if not change.append:
                pairs[:] = [pair for pair in pairs if pair[0] != lower]
            pairs.append((lower, change.value if change.raw else b""))


def _first(pairs: Headers, name: str) -> bytes | None:
    return next((value for key, value in pairs if key == name), None)
