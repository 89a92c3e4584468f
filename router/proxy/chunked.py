"""The chunked transfer coding, as the compiled `chunks` reads it (RFC 9112, section 7.1).

The proxy needs two things that common parsers do not tell: where in a read the message ends (what
follows is the next request, or junk), and whether a read begins and ends on a chunk boundary (then
its raw bytes can be passed on as they are).
"""

from __future__ import annotations

from warmlane._core.chunks import MAX_SIZE_LINE, MAX_TRAILER_BYTES, BadChunk, ChunkReader

__all__ = ["MAX_SIZE_LINE", "MAX_TRAILER_BYTES", "BadChunk", "ChunkReader"]
