"""Types of the compiled module; the contract is in chunks.pxd, the meaning in chunks.pyx."""

from typing import Final

MAX_SIZE_LINE: Final = 256
MAX_TRAILER_BYTES: Final = 8192

class BadChunk(Exception):
    """The bytes are not a chunked body. The connection cannot be used any more."""

class ChunkReader:
    """Feed it the bytes after a head; it gives the payload and says where the message ends.

    done: the last chunk and the trailer section have been read.
    used: bytes of the latest read that belong to the message (less than all only when done).
    aligned: the latest read began and ended between two chunks (or ended the message).
    trailer: raw trailer lines, each with its CRLF, b"" if none.
    """

    done: bool
    used: int
    aligned: bool
    trailer: bytes
    def feed(self, data: bytes) -> bytes:
        """Payload bytes in `data`. Raises BadChunk."""
