"""Damaged and hostile frame streams through the native transport's connection.

Meant for the sanitized build (run_sanitized.sh). Clients on python-h2 make valid bytes, which are
flipped, cut, forged, repeated and mixed with frames of chance; handlers answer now, later, with
errors or never; the transport pauses, ticks and goes at any time. After each round nothing may be
kept, and every handler must have heard once that it is over. Prints the seed of a failing round.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.core.h2_rig import LIMITS, Echo, Wire, framed

try:
    from warmlane._core.h2 import frames
    from warmlane._core.h2.connection import Connection
    from warmlane._core.h2.streams import Shared
except ImportError as error:
    print(f"fuzz_h2: skipped, the native transport is not built here ({error})")
    sys.exit(0)


class Moody(Echo):
    """Answers at once, later, with an error, by an exception, or never."""

    rng = random.Random(0)

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__(wake)
        self.mood = self.rng.randrange(6)
        self.paused = False

    def receive(self, message: bytes) -> None:
        assert "closed" not in self.heard
        if self.mood == 1 and len(self.heard) > 2:
            raise ValueError("moody")
        super().receive(message)
        if self.mood == 2:
            self.paused = self.rng.random() < 0.5
        if self.mood == 3:
            self.status = (self.rng.randrange(17), "x" * self.rng.randrange(100))
        if self.mood == 4 and self.rng.random() < 0.3:
            self.out = self.out * self.rng.randrange(20)

    def take(self) -> list[bytes]:
        return [] if self.mood == 5 and self.rng.random() < 0.7 else super().take()


def frames_of_chance(rng: random.Random, count: int) -> bytes:
    out = b""
    for _ in range(count):
        kind = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, rng.randrange(256)])
        size = rng.choice([0, 4, 5, 6, 8, 9, rng.randrange(300)])
        payload = rng.randbytes(size)
        if kind == 1:
            payload = rng.choice([b"\x83\x86\x84", b"\x82\x87\x85", payload])
        if kind == 0 and rng.random() < 0.5:
            payload = framed(payload, rng.choice([0, 0, 0, 1, 2]))
        stream = rng.choice([0, 1, 3, 5, 7, 9, 2, rng.randrange(1 << 31)])
        out += struct.pack(">I", len(payload))[1:] + bytes([kind, rng.choice([0, 1, 4, 5, 8, 32])])
        out += struct.pack(">I", stream) + payload
    return out


def damaged(rng: random.Random, data: bytes) -> bytes:
    """A few changes of the kinds that parsers dislike."""
    raw = bytearray(data)
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        if not raw:
            break
        at = rng.randrange(len(raw))
        match rng.randrange(6):
            case 0:
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                del raw[at : at + rng.randrange(1, 40)]
            case 2:
                raw[at:at] = frames_of_chance(rng, 1)
            case 3:
                raw[at : at + 3] = rng.randbytes(3)
            case 4:
                raw[at:at] = raw[at : at + rng.randrange(1, 200)]
            case 5:
                del raw[at:]
    return bytes(raw)


def act(rng: random.Random, wire: Wire, live: list[int]) -> None:
    """One valid thing that a client does."""
    kind = rng.randrange(10)
    if kind < 3 or not live:
        extra = {"x-" + "y" * rng.randrange(50): "z" * rng.choice([0, 10, 9000])}
        path = rng.choice(["/test.Service/Echo"] * 5 + ["/nope"])
        live.append(wire.open(path, extra if rng.random() < 0.2 else None))
        return
    sid = rng.choice(live)
    if kind < 8:
        size = rng.choice([0, 1, 100, 5000, 40_000, 70_000])
        end = rng.random() < 0.2
        sent = framed(rng.randbytes(min(size, 500)) * max(1, size // 500))
        if wire.send(sid, sent, end=end) == len(sent) and end:
            live.remove(sid)
    elif kind == 8:
        wire.client.reset_stream(sid, rng.choice([0, 8]))
        live.remove(sid)
    else:
        wire.client.ping(b"12345678")


def disturb(rng: random.Random, wire: Wire) -> None:
    """One thing that the event loop or a handler does."""
    kind = rng.randrange(12)
    server = wire.server
    if kind == 0:
        server.pause_writing()
    elif kind in (1, 2):
        server.resume_writing()
    elif kind == 3:
        server.tick(time.monotonic() + rng.choice([0, 0, 70, 100]))
    elif kind == 4:
        server.drain()
    elif kind == 5 and rng.random() < 0.2:
        server.drain_now()
    elif wire.handlers:
        handler = rng.choice(wire.handlers)
        handler.paused = False
        if rng.random() < 0.2:
            handler.status = (0, "")
        handler.wake()
    wire.loop.run()


def one_round(rng: random.Random) -> None:
    limits = dict(LIMITS, control_burst=rng.choice([5, 1000]), resets_burst=rng.choice([1, 50]))
    if rng.random() < 0.3:
        limits |= {"stream_bytes": 50_000, "held_limit_bytes": rng.choice([60_000, 300_000])}
    shared = Shared(**limits)
    Moody.rng = rng
    wire = Wire(Connection, shared, Moody)
    if rng.random() < 0.2:  # libnghttp2 runs out of memory once
        frames._fail_allocation_after(rng.randrange(150))
    try:
        talk(rng, wire)
    finally:
        frames._fail_allocation_after(-1)
    wire.hang_up()
    for handler in wire.handlers:
        handler.wake()
    wire.loop.run()
    left = {name: value for name, value in shared.stats().items() if "open" in name}
    assert shared.held_bytes == 0 and not any(left.values()), (shared.held_bytes, left)


def talk(rng: random.Random, wire: Wire) -> None:
    live: list[int] = []
    hostile = rng.random() < 0.6
    wire.deliver(wire.client.data_to_send())
    for _ in range(rng.randrange(1, 25)):
        if wire.pipe.closing:
            break
        act(rng, wire, live)
        if rng.random() < 0.5:
            continue
        data = wire.client.data_to_send()
        if hostile and rng.random() < 0.3:
            data = damaged(rng, data)
        if hostile and rng.random() < 0.1:
            data += frames_of_chance(rng, rng.randrange(1, 30))
        wire.deliver(data, rng.choice([0, 0, 1, 9, 100]))
        disturb(rng, wire)
        if not hostile:  # a client that reads: windows move, streams end
            came = bytes(wire.pipe.written[wire._read :])
            wire._read += len(came)
            wire.see(came)
            live = [
                sid
                for sid in live
                if not wire.answers[sid].ended and wire.answers[sid].reset is None
            ]
            if wire.goaways:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run the round of this seed alone")
    options = parser.parse_args()
    if options.only is not None:
        one_round(random.Random(options.only))
        return
    end, rounds = time.monotonic() + options.seconds, 0
    while time.monotonic() < end:
        seed = options.seed * 1_000_003 + rounds
        try:
            one_round(random.Random(seed))
        except Exception:
            print(f"fuzz_h2: fails at round seed {seed}", flush=True)
            raise
        rounds += 1
    print(f"fuzz_h2: {rounds} rounds, nothing kept")


if __name__ == "__main__":
    main()
