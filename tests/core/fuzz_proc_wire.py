"""Random, cut and damaged messages through `_core.proc_wire` and `_core.proc_answer`, with twins.

python -m tests.core.fuzz_proc_wire --seconds 20 --seed 1
"""

from __future__ import annotations

import random

from tests.core import proc_messages
from tests.core import twin_proc_answer as writing
from tests.core import twin_proc_wire as twin
from tests.core.fuzzing import fuzz
from warmlane._core import proc_answer as write
from warmlane._core import proc_wire as wire

WANTED = (None, (b"authorization",), (b"x-request-id", b"accept", b"x-llm-d-any"))


def damage(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randint(0, 4)):
        if not data:
            break
        at = rng.randrange(len(data))
        move = rng.randrange(4)
        if move == 0:
            data[at] = rng.randrange(256)
        elif move == 1:
            del data[at:]
        elif move == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 4))
        else:
            data += data[at : at + 40]
    return bytes(data)


def one_round(rng: random.Random) -> None:
    message = damage(rng, proc_messages.request(rng).SerializeToString())
    wanted = rng.choice(WANTED)
    try:
        expected = twin.receive(message, wanted)
    except twin.WireError:
        expected = None
    try:
        found = wire.receive(message, wanted)
    except wire.WireError:
        found = None
    assert (found is None) == (expected is None), "accepted by one alone"
    if found is not None and expected is not None:
        for name in twin.FIELDS:
            assert getattr(found, name) == getattr(expected, name), name
    body = rng.randbytes(rng.choice((0, 1, 3000, 70_000)))
    kind, last = rng.choice((4, 5)), rng.random() < 0.5
    assert write.pieces(kind, body, last) == writing.pieces(kind, body, last), "pieces"
    mutation = write.set_header(rng.randbytes(rng.randint(0, 300)), b"v" * rng.randint(0, 300))
    given = (rng.randint(2, 7), b"1.2.3.4:5" * rng.randint(0, 300), rng.randint(-1, 99), mutation)
    assert write.answer(*given, body) == writing.answer(*given, body), "answer"
    assert write.immediate(503, mutation, body, b"d") == writing.immediate(
        503, mutation, body, b"d"
    )


if __name__ == "__main__":
    fuzz(__file__, one_round)
