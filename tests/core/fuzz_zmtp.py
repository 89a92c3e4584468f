"""Fuzz the ZMTP connection: true and damaged peers, cut anywhere, failing allocations.

    python -m tests.core.fuzz_zmtp --seconds 20 --seed 1

Meant for the sanitized build (run_sanitized.sh). Every stream is compared with the twin.
"""

from __future__ import annotations

import random

from tests.core.fuzzing import fuzz
from tests.core.twin_zmtp import heard
from tests.core.zmtp_streams import damaged, stream
from warmlane._core.zmtp import Zmtp, _fail_alloc_after

LIMIT = 4096


def one_round(rnd: random.Random) -> None:
    kind = rnd.choice([b"SUB", b"DEALER"])
    data = stream(rnd, kind) * rnd.choice([1, 1, 1, 30])
    if rnd.random() < 0.7:
        data = damaged(rnd, data)
    zmtp, messages, out, refused = Zmtp(kind, LIMIT), [], b"", False
    start = 0
    while start < len(data):
        # A buffer of its own: a read beyond its end is then beyond a heap block's.
        piece = bytearray(data[start : start + rnd.choice([1, 9, 100, 3000, 200_000])])
        if rnd.random() < 0.05:
            _fail_alloc_after(rnd.randrange(2))
        try:
            zmtp.feed(piece)
        except MemoryError:
            continue  # nothing of it was kept
        finally:
            _fail_alloc_after(-1)
        start += len(piece)
        try:
            while rnd.random() < 0.9 and (message := zmtp.take()) is not None:
                messages.append(message)
        except ValueError:
            refused = True
        out += zmtp.outgoing()
    try:
        while (message := zmtp.take()) is not None:
            messages.append(message)
    except ValueError:
        refused = True
    found = heard(kind, data, LIMIT)
    assert (messages, refused, zmtp.up) == (found.messages, found.refused, found.up)
    assert out + zmtp.outgoing() == found.out


if __name__ == "__main__":
    fuzz(__file__, one_round)
