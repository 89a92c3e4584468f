"""Plain-Python oracle of `_core.zmtp`: reads all bytes of a peer at once, by slices.

It defines what is taken, what is answered and where a peer is given up; the compiled connection
has to come to the same for every cutting of the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PEERS = {b"SUB": {b"PUB", b"XPUB"}, b"DEALER": {b"ROUTER", b"DEALER", b"REP"}}
MAX_PARTS = 16
MAX_COMMAND = 4096
MAX_OUT = 16384


class Refused(Exception):
    """The peer is given up here."""


class Short(Exception):
    """More bytes are needed."""


@dataclass
class Heard:
    """What became of a peer's bytes. out: all that is to be sent, the greeting first."""

    messages: list[list[bytes]] = field(default_factory=list)
    out: bytes = b"\xff" + bytes(8) + b"\x7f\x03\0NULL" + bytes(48)
    up: bool = False
    refused: bool = False


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if len(self.data) - self.at < size:
            raise Short
        self.at += size
        return self.data[self.at - size : self.at]


def heard(kind: bytes, data: bytes, max_bytes: int) -> Heard:
    """All of a peer's bytes so far."""
    found = Heard()
    reader = Reader(data)
    try:
        greeting(reader)
        body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        if kind == b"DEALER":
            body += b"\x08Identity\0\0\0\0"
        found.out += b"\x04" + bytes([len(body)]) + body
        parts: list[bytes] = []
        while True:
            frame(reader, kind, found, parts, max_bytes)
    except Short:
        pass
    except Refused:
        found.refused = True
        found.up = False
    return found


def greeting(reader: Reader) -> None:
    data = reader.data
    if data and data[0] != 0xFF:
        raise Refused
    if len(data) > 9 and not data[9] & 1:
        raise Refused
    if len(data) > 10 and data[10] < 3:
        raise Refused
    if reader.take(64)[12:32].rstrip(b"\0") != b"NULL":
        raise Refused


def frame(reader: Reader, kind: bytes, found: Heard, parts: list[bytes], max_bytes: int) -> None:
    if len(reader.data) - reader.at < 2:
        raise Short
    flags = reader.take(1)[0]
    more, long, command = flags & 1, flags & 2, flags & 4
    if flags >= 8 or (more and command):
        raise Refused
    size = int.from_bytes(reader.take(8 if long else 1), "big")
    if command:
        if size > MAX_COMMAND:
            raise Refused
    elif not found.up or sum(map(len, parts)) + size > max_bytes:
        raise Refused
    body = reader.take(size)
    if command:
        obey(body, kind, found)
        return
    if len(parts) == MAX_PARTS:
        raise Refused
    parts.append(body)
    if not more:
        found.messages.append(parts[:])
        parts.clear()


def obey(body: bytes, kind: bytes, found: Heard) -> None:
    if not body or body[0] == 0 or len(body) < 1 + body[0]:
        raise Refused
    name, rest = body[1 : 1 + body[0]], body[1 + body[0] :]
    if name == b"ERROR":
        raise Refused
    if not found.up:
        if name != b"READY" or socket_type(rest) not in PEERS[kind]:
            raise Refused
        found.up = True
        if kind == b"SUB":
            found.out += b"\x00\x01\x01"
    elif name == b"PING":
        if not 2 <= len(rest) <= 18:
            raise Refused
        found.out += bytes([4, len(rest) + 3]) + b"\x04PONG" + rest[2:]


def socket_type(rest: bytes) -> bytes:
    found = b""
    while rest:
        name = rest[0]
        if name == 0 or len(rest) < 1 + name + 4:
            raise Refused
        size = int.from_bytes(rest[1 + name : 5 + name], "big")
        if len(rest) < 5 + name + size:
            raise Refused
        if rest[1 : 1 + name].lower() == b"socket-type":
            found = rest[5 + name : 5 + name + size]
        rest = rest[5 + name + size :]
    return found
