"""Plain-Python twin of `_core.h2.streams`: whole messages out of DATA, and grpc-message."""

from __future__ import annotations

import struct

FED, COMPRESSED, BAD_FLAG, TOO_LONG, STREAM_FULL, SERVER_FULL = range(6)
PREFIX = 5
FIRST_ROOM = 64 * 1024
OVERHEAD = 64


class Assembly:
    """Messages of one stream. Keeps every byte, so that nothing can be cut wrongly."""

    def __init__(self, message_bytes: int, stream_bytes: int) -> None:
        self.message_bytes = message_bytes
        self.stream_bytes = stream_bytes
        self.data = b""
        self.held = 0  # whole messages that were handed out are still charged
        self.dead = False

    def feed(self, data: bytes) -> tuple[list[bytes], int]:
        """Messages that `data` completes, and the code of what is wrong."""
        assert not self.dead
        self.data += data
        found = []
        while len(self.data) >= PREFIX:
            flag, size = struct.unpack_from(">BI", self.data)
            code = FED
            if flag:
                code = COMPRESSED if flag == 1 else BAD_FLAG
            elif size > self.message_bytes:
                code = TOO_LONG
            elif self.held + min(size, len(self.data) - PREFIX) + OVERHEAD > self.stream_bytes:
                code = STREAM_FULL
            if code:
                self.dead = True
                return found, code
            if len(self.data) < PREFIX + size:
                break
            found.append(self.data[PREFIX : PREFIX + size])
            self.data = self.data[PREFIX + size :]
            self.held += size + OVERHEAD
        return found, FED


def percent_encode(text: str) -> bytes:
    """PROTOCOL-HTTP2, Percent-Byte-Unencoded: 0x20-0x24 and 0x26-0x7E stand for themselves."""
    out = ""
    for byte in text.encode("utf-8", "replace")[:1024]:
        plain = 0x20 <= byte <= 0x24 or 0x26 <= byte <= 0x7E
        out += chr(byte) if plain else f"%{byte:02X}"
    return out.encode("ascii")
