"""The answer's way to one client: head edits, framing, and what a broken answer ends with.

Sans-I/O: it turns what a replica sent into the bytes for the client. Raw bytes pass untouched as
long as a read begins and ends between two chunks (and, in an event stream, between two events),
which is nearly always. Otherwise the payload gets chunks of our own, and the unfinished part of
an event is kept back: only then can an error event be put behind the last whole event.

Never ends a broken answer as if it were whole.
"""

from __future__ import annotations

import re
from typing import Final

from warmlane.router.proxy.response_head import ResponseHead, response_bytes
from warmlane.router.proxy.wire import LAST_CHUNK, Framing

# A single event longer than this is passed on in pieces; the bound of what is kept back.
MAX_TAIL: Final = 65_536
# The event that says "clean end" in the OpenAI dialects, and all that follows it.
_DONE: Final = re.compile(rb"(?:^|(?<=\n))data:[ \t]*\[DONE\]")


class Relay:
    """The client's side of one answer; made new for each."""

    __slots__ = ("_framing", "_plain", "_sse", "_tail", "close")

    def __init__(self) -> None:
        self.close = False  # the client's connection ends with this answer
        self._framing = Framing.NONE
        self._plain = False  # chunked by the replica, but the client speaks HTTP/1.0
        self._sse = False
        self._tail = b""  # the unfinished last event

    def head(self, head: ResponseHead, *, http10: bool, close: bool, extra: bytes) -> bytes:
        """The response head for the client. Call it once, before `body`."""
        self._framing = framing = head.framing
        self._sse = head.sse and not head.encoded
        self._plain = plain = http10 and framing is Framing.CHUNKED
        self.close = close = close or plain or framing is Framing.CLOSE
        return response_bytes(head, close=close, dechunk=plain, extra=extra)

    def body(
        self, raw: bytes, payload: bytes, aligned: bool, done: bool, trailer: bytes = b""
    ) -> bytes:
        """Bytes for the client. raw: as read; payload: without chunk framing; aligned: raw begins
        and ends between chunks; done: the answer ends here."""
        if self._framing is not Framing.CHUNKED:
            if not self._sse or self._framing is Framing.LENGTH:
                return payload
            return self._whole_events(payload, done)
        if self._sse:
            if aligned and not self._tail and (done or _at_event_end(payload)):
                return payload if self._plain else raw
            payload = self._whole_events(payload, done)
        elif aligned and not self._plain:
            return raw
        if self._plain:
            return payload
        chunk = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        return b"%b0\r\n%b\r\n" % (chunk, trailer) if done else chunk

    def broken(self, event: bytes) -> bytes | None:
        """Last bytes of an event stream that broke: the error event and the end of the message.

        None: the framing has no room for one; the connection must be cut so that the client sees
        a truncated answer. The unfinished event that was kept back is dropped.
        """
        self._tail = b""
        if not self._sse or self._framing in (Framing.LENGTH, Framing.NONE):
            return None
        if self._plain or self._framing is Framing.CLOSE:
            return event
        return b"%x\r\n%b\r\n%b" % (len(event), event, LAST_CHUNK)

    def error_end(self, payload: bytes, event: bytes) -> bytes:
        """The end of a stream that the engine itself broke off: its last words pass, the [DONE]
        behind them does not. payload: the read that holds them; event: ours, b"" for none."""
        payload = self._tail + payload
        self._tail = b""
        mark = _DONE.search(payload)
        if mark is not None:
            payload = payload[: mark.start()]
        if not _at_event_end(payload):
            payload = payload.rstrip(b"\r\n") + b"\n\n"
        payload += event
        if self._plain or self._framing is not Framing.CHUNKED:
            return payload
        return b"%x\r\n%b\r\n%b" % (len(payload), payload, LAST_CHUNK)

    def _whole_events(self, payload: bytes, done: bool) -> bytes:
        if self._tail:
            payload = self._tail + payload
            self._tail = b""
        if done or _at_event_end(payload):
            return payload
        cut = max(payload.rfind(b"\n\n") + 2, payload.rfind(b"\r\n\r\n") + 4)
        if cut < 4 and payload[:2] != b"\n\n":
            cut = 0
        if len(payload) - cut > MAX_TAIL:
            return payload
        self._tail = payload[cut:]
        return payload[:cut]


def _at_event_end(payload: bytes) -> bool:
    return payload.endswith((b"\n\n", b"\r\n\r\n"))
