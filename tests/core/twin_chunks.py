"""The strict decoder of the chunked transfer coding in plain Python: oracle of `_core.chunks`."""

from __future__ import annotations

import re

# A size line longer than this is an attack: 16 hex digits plus a modest extension.
MAX_SIZE_LINE = 256
MAX_TRAILER_BYTES = 8192

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_SIZE_SO_FAR = re.compile(
    rb"[0-9A-Fa-f]{0,15}(?:(?<=.)(?:\r|[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*\r?)?))?\Z"
)
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class BadChunk(Exception):
    """The bytes are not a chunked body. The connection cannot be used any more."""


class ChunkReader:
    """Feed it the bytes after a head; it gives the payload and says where the message ends.

    done: the last chunk and the trailer section have been read.
    used: bytes of the latest read that belong to the message (less than all only when done).
    aligned: the latest read began and ended between two chunks (or ended the message).
    trailer: raw trailer lines, each with its CRLF, b"" if none.
    """

    __slots__ = ("_between", "_left", "_tail", "aligned", "done", "trailer", "used")

    def __init__(self) -> None:
        self.done = False
        self.used = 0
        self.aligned = True
        self.trailer = b""
        self._left = 0  # payload bytes of the open chunk that are still to come
        self._tail = b""  # an incomplete size line, chunk end or trailer section
        self._between = True  # the next byte is the first of a size line

    def feed(self, data: bytes) -> bytes:
        """Payload bytes in `data`. Raises BadChunk."""
        tail = self._tail
        began_between = self._between and not tail
        if tail:
            data = tail + data
            self._tail = b""
        parts: list[bytes] = []
        at = self._advance(data, parts)
        self.used = at - len(tail)
        self.aligned = began_between and (self.done or (self._between and not self._tail))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _advance(self, data: bytes, parts: list[bytes]) -> int:
        at = 0
        total = len(data)
        while at < total:
            if self._between:
                match = _SIZE.match(data, at)
                if match is None:
                    self._keep(data, at)
                    return total
                if match.end() - at > MAX_SIZE_LINE:
                    raise BadChunk("invalid chunk size line")
                self._left = int(match[1], 16)
                if self._left == 0:
                    return self._end(data, at, match.end())
                at = match.end()
                self._between = False
            left = self._left
            if left:
                piece = data[at : at + left]
                parts.append(piece)
                at += len(piece)
                self._left = left - len(piece)
                if self._left:
                    return total
            end = data[at : at + 2]
            if end == b"\r\n":
                self._between = True
                at += 2
            elif end in (b"", b"\r"):
                self._tail = end
                return total
            else:
                raise BadChunk("chunk data does not end where its size says")
        return at

    def _keep(self, data: bytes, at: int) -> None:
        """Remember an incomplete size line, or refuse it as soon as it cannot become one."""
        line = data[at : at + MAX_SIZE_LINE + 1]
        if len(line) > MAX_SIZE_LINE or _SIZE_SO_FAR.match(line) is None:
            raise BadChunk("invalid chunk size line")
        self._tail = line

    def _end(self, data: bytes, at: int, after: int) -> int:
        """Read the trailer section behind the last chunk's size line."""
        if data.startswith(b"\r\n", after):
            self.done = True
            return after + 2
        end = data.find(b"\r\n\r\n", after)
        section = data[after:] if end < 0 else data[after : end + 2]
        if len(section) > MAX_TRAILER_BYTES:
            raise BadChunk("trailer section too large")
        lines = section.split(b"\r\n")
        last = lines.pop()
        if any(_TRAILER.fullmatch(line) is None for line in lines) or b"\n" in last:
            raise BadChunk("invalid trailer")
        if end < 0:
            self._tail = data[at:]
            return len(data)
        self.done = True
        self.trailer = section
        return end + 4
