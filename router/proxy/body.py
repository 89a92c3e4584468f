"""A request body on its way into the buffer. Sans-I/O: limits and time-outs are the client's."""

from __future__ import annotations

from warmlane.router.proxy.chunked import ChunkReader
from warmlane.router.proxy.request_head import RequestHead, RequestReader, safe_trailer


class BodyReader:
    """Reads the body of one request, of known length or chunked.

    size: payload bytes so far. done: all of it is here.
    """

    __slots__ = ("_left", "_parts", "_reader", "chunks", "done", "head", "size")

    def __init__(self, head: RequestHead, reader: RequestReader) -> None:
        self.head = head
        self.chunks = ChunkReader() if head.chunked else None
        self.size = 0
        self.done = False
        self._left = head.length
        self._parts: list[bytes] = []
        self._reader = reader

    def feed(self, data: bytes) -> bytes:
        """Take from `data` what belongs to the body; the rest of it. Raises BadChunk."""
        chunks = self.chunks
        if chunks is None:
            piece = data[: self._left]
            self._left -= len(piece)
            self.done = self._left == 0
            self._reader.skip_body(self.head, piece)
            rest = data[len(piece) :]
        else:
            piece = chunks.feed(data)
            self.done = chunks.done
            rest = data[chunks.used :]
            if self.done:
                self._reader.skip_body(self.head, b"")
        self._parts.append(piece)
        self.size += len(piece)
        return rest

    @property
    def trailer(self) -> bytes:
        """Trailer lines that may pass on."""
        return safe_trailer(self.chunks.trailer) if self.chunks is not None else b""

    def join(self) -> bytes:
        """The body so far; the parts are let go."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
