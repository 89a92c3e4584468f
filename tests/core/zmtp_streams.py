"""Random bytes of ZMTP peers, whole and damaged: for the tests and the fuzz target."""

from __future__ import annotations

import random

from warmlane._core.zmtp import HELLO

TYPES = {b"SUB": (b"PUB", b"XPUB"), b"DEALER": (b"ROUTER", b"REP")}


def frame(flags: int, body: bytes, *, long: bool = False) -> bytes:
    """One frame; flags: 1 more, 4 command."""
    if long or len(body) > 255:
        return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body
    return bytes([flags, len(body)]) + body


def ready(rnd: random.Random, kind: bytes) -> bytes:
    properties = [(b"Socket-Type", rnd.choice(TYPES[kind]))]
    if rnd.random() < 0.5:
        properties.insert(rnd.randrange(2), (b"Identity", rnd.randbytes(rnd.randrange(4))))
    if rnd.random() < 0.2:
        properties[0] = (b"socket-TYPE", properties[0][1])
    body = b"\x05READY"
    for name, value in properties:
        body += bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
    return frame(4, body, long=rnd.random() < 0.2)


def command(rnd: random.Random) -> bytes:
    body = rnd.choice(
        [
            b"\x04PING\0\0" + rnd.randbytes(rnd.randrange(17)),
            b"\x04PONG" + rnd.randbytes(rnd.randrange(17)),
            b"\x07UNKNOWN" + rnd.randbytes(rnd.randrange(300)),
        ]
    )
    return frame(4, body, long=rnd.random() < 0.2)


def stream(rnd: random.Random, kind: bytes) -> bytes:
    """A greeting, a handshake, messages with commands between their parts; some break a limit."""
    made = HELLO[:11] + bytes([rnd.randrange(3)]) + HELLO[12:] + ready(rnd, kind)
    for _ in range(rnd.randrange(12)):
        parts = rnd.choice([1, 3, 3, 4, 16, 17]) if rnd.random() < 0.2 else 3
        for part in range(parts):
            if rnd.random() < 0.2:
                made += command(rnd)
            size = rnd.choice([0, 1, 8, 200, 300, 1000]) if rnd.random() < 0.98 else 4097
            last = part == parts - 1
            made += frame(0 if last else 1, rnd.randbytes(size), long=rnd.random() < 0.1)
    return made


def damaged(rnd: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut out and put in."""
    made = bytearray(data)
    for _ in range(rnd.randrange(1, 4)):
        at = rnd.randrange(len(made) + 1)
        act = rnd.random()
        if act < 0.5 and at < len(made):
            made[at] = rnd.choice([0, 1, 2, 4, 5, 255, rnd.randrange(256)])
        elif act < 0.7:
            del made[at:]
        elif act < 0.85:
            del made[at : at + rnd.randrange(9)]
        else:
            made[at:at] = rnd.randbytes(rnd.randrange(9))
    return bytes(made)
