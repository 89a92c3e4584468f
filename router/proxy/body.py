"""A request body on its way into the buffer. Sans-I/O: limits and time-outs are the client's."""

from __future__ import annotations

from warmlane.router.proxy.chunked import ChunkReader
from warmlane.router.proxy.request_head import RequestHead, safe_trailer


class BodyReader:
    """Reads the body of one request, of known length or chunked.

    size: payload bytes so far. done: all of it is here. The parts are copied once, by `join`.
    """

    __slots__ = ("_left", "_parts", "chunks", "done", "head", "size")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.chunks = ChunkReader() if head.chunked else None
        self.size = 0
        self.done = False
        self._left = head.length
        self._parts: list[bytes | memoryview] = []

    def begin(self, data: bytes, start: int) -> bytes:
        """`feed` with what stands behind the head in the read that brought it."""
        length = len(data) - start
        if self.chunks is not None or length >= self._left:
            return self.feed(data[start:])
        self._parts.append(memoryview(data)[start:])
        self._left -= length
        self.size = length
        return b""

    def feed(self, data: bytes) -> bytes:
        """Take from `data` what belongs to the body; the rest of it. Raises BadChunk."""
        chunks = self.chunks
        if chunks is None:
            piece = data[: self._left]  # the same object, if all of it belongs here
            self._left -= len(piece)
            self.done = self._left == 0
            rest = data[len(piece) :]
        else:
            piece = chunks.feed(data)
            self.done = chunks.done
            rest = data[chunks.used :]
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
