"""A body too large to buffer: multipart streams through to a replica chosen by load alone.

Nothing of it is kept, so it can only move to another replica while no byte of the body has been
sent. Back-pressure reaches the client: reading stops while the replica's socket is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmlane.router.attempts import Fault
from warmlane.router.errors import RequestError
from warmlane.router.proxy.chunked import ChunkReader
from warmlane.router.proxy.exchange import Exchange
from warmlane.router.proxy.request_head import request_bytes
from warmlane.router.requests import parse

if TYPE_CHECKING:
    from warmlane.router.proxy.upstream import Upstream


class Upload(Exchange):
    """An exchange whose body is still arriving. `_body` holds what waits for a connection."""

    __slots__ = ("_chunks", "_left", "_sent")

    _chunks: ChunkReader | None
    _left: int

    def begin(self, chunks: ChunkReader | None, length: int, first: bytes) -> None:
        """chunks: the reader of a chunked body, None for one of `length` bytes. first: the form's
        first bytes, which may name the model; they still have to be fed."""
        self._chunks = chunks
        self._left = length
        self._sent = False
        head = self._head
        request, _ = parse("POST", head.path, head.headers, first or self._body)
        self._client.pause_upload(True)
        self._decide_and_send(request)

    def feed(self, data: bytes) -> None:
        """More of the body. Raises BadChunk."""
        chunks = self._chunks
        if chunks is None:
            data = data[: self._left]
            self._left -= len(data)
            last = self._left == 0
        else:
            data = chunks.feed(data) if not chunks.done else b""
            last = chunks.done
        upstream = self._upstream
        if upstream is None:
            self._body += data  # bounded: the client is paused until there is a connection
            return
        self._touch()
        if last:
            wait_s = self._state.timeouts.first_byte_s
            self.deadline = min(self._state.now + wait_s, self._total)
        upstream.write(self._frame(data, last), last)

    def _frame(self, data: bytes, last: bool) -> bytes:
        if self._chunks is None:
            return data
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return chunk + b"0\r\n\r\n" if last else chunk

    def _send(self, connection: Upstream, now: float) -> None:
        link = self._link
        head = request_bytes(self._head, link.host_line, link.extra, -1)
        data, self._body = self._body, b""
        last = self._whole()
        self._upstream = connection
        self._sent = True
        self.deadline = min(now + self._state.timeouts.first_byte_s, self._total)
        connection.send(self, head, self._frame(data, last), last)
        self._state.router.sent(self._decision.ticket, self._slot, now)
        self._client.pause_upload(False)

    def _whole(self) -> bool:
        """Whether all of the body has arrived here."""
        return self._chunks.done if self._chunks is not None else self._left == 0

    def expired(self, now: float) -> None:
        if self.begun or self._upstream is None or self._whole():
            super().expired(now)
            return
        # It is the client who is slow: nothing is wrong with the replica.
        self._drop_upstream()
        self._refuse(RequestError(408, "The request took too long.", kind="timeout_error"))

    def on_writable(self, writable: bool) -> None:
        self._client.pause_upload(not writable)

    def _failed(self, fault: Fault, reason: str) -> None:
        if not self._sent:
            super()._failed(fault, reason)
            return
        self._side.fault(self._slot, fault)
        self._out_of_choices(fault, reason)

    def on_fault(self, fault: Fault, reason: str, stale: bool) -> None:
        super().on_fault(fault, reason, False)
