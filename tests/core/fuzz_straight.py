"""Requests and answers, whole and damaged, in random cuts through the proxy's compiled path.

Every round runs a proxy with two scripted engines and some clients. What was sent whole must come
back whole; damage may end a connection and nothing else: no ticket, body or request stays behind.

python -m tests.core.fuzz_straight --seconds 20 --seed 1
"""

from __future__ import annotations

import asyncio
import logging
import random

from tests.core.fuzzing import fuzz
from tests.proxy.engine import (
    ERROR_EVENT,
    LAST,
    SSE_HEAD,
    STREAM,
    Engine,
    Out,
    Script,
    Seen,
    answer_body,
    chat_body,
    chunk,
    event,
    whole,
)
from tests.proxy.rig import Rig, post, rig

TIME_OUTS = {"head_s": 1.0, "first_byte_s": 1.0, "idle_s": 1.0, "connect_s": 1.0}


def answer(rng: random.Random) -> bytes:
    """An answer as engines send them, or nearly."""
    kind = rng.randrange(6)
    if kind < 2:
        finish = rng.choice(("stop", "stop", "abort"))
        return whole(answer_body("x" * rng.choice((1, 3000)), finish))
    events = [STREAM[0], *[event("y" * rng.randrange(1, 200)) for _ in range(rng.randrange(20))]]
    events += rng.choice(([], [ERROR_EVENT], [event("", "abort")])) if kind == 5 else []
    events += STREAM[-2:]
    if kind == 3:
        events = [b"".join(events)]
    return SSE_HEAD + chunk(*events) + rng.choice((LAST, LAST, b"0\r\nX-T: v\r\n\r\n"))


def damaged(data: bytes, rng: random.Random, odds: float) -> bytes:
    out = bytearray(data)
    while rng.random() < odds:
        out[rng.randrange(len(out))] = rng.choice((rng.randrange(256), *b'\r\n{}[]",:\\ 0'))
    return bytes(out[: rng.randrange(len(out))]) if rng.random() < odds / 4 else bytes(out)


async def write(send: object, data: bytes, rng: random.Random) -> None:
    """In up to four parts."""
    assert callable(send)
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if start < end:
            await send(data[start:end])
            if rng.random() < 0.5:
                await asyncio.sleep(0.001)


def engine(rng: random.Random, odds: float) -> Script:
    async def script(seen: Seen, out: Out) -> None:
        await write(out.send, damaged(answer(rng), rng, odds), rng)
        if rng.random() < odds:
            out.reset() if rng.random() < 0.5 else out.close()

    return script


async def client(running: Rig, rng: random.Random, odds: float) -> None:
    peer = await running.connect()
    try:
        for _ in range(rng.randrange(1, 5)):
            message = {"role": "user", "content": "word \\" * rng.choice((1, 40, 20_000))}
            last = rng.random() < 0.05
            request = post(chat_body(messages=[message], stream=True), close=last)
            request *= rng.choice((1, 1, 1, 2))
            await write(peer.send, damaged(request, rng, odds), rng)
            if rng.random() < odds / 3:
                peer.reset()
                return
            reply = await peer.reply()
            if not odds:
                assert reply.status in (200, 502, 503), reply
                assert reply.status != 200 or not reply.error, reply
            if reply.error or last or b'"error"' in reply.body:  # those close the connection
                return
    except (ConnectionError, TimeoutError):
        assert odds, "a connection broke without a cause"
    finally:
        peer.close()


async def one_round(rng: random.Random) -> None:
    odds = rng.choice((0.0, 0.1, 0.3))
    engines = [Engine(engine(rng, odds)) for _ in range(2)]
    limits = {"hold_bytes": rng.choice((64, 16384)), "hold_s": 0.2}
    settings = {"pool": {"policy": "default"}, "limits": limits, "timeouts": TIME_OUTS}
    async with rig(*engines, **settings) as running:
        seeds = [rng.randrange(2**32) for _ in range(12)]
        await asyncio.gather(*[client(running, random.Random(seed), odds) for seed in seeds])


def one_run(rng: random.Random) -> None:
    logging.disable(logging.WARNING)  # ejections are the rule here
    asyncio.run(one_round(rng))


if __name__ == "__main__":
    fuzz(__file__, one_run)
