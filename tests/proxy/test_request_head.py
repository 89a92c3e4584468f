"""A head that comes in drops: each byte is looked at once, whatever the pieces."""

from __future__ import annotations

import asyncio
import random

import pytest

from warmlane.router.errors import RequestError
from warmlane.router.proxy.request_head import check_start

from .engine import GOOD, chat_body
from .rig import post, rig


@pytest.mark.parametrize(
    "bad", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nA: b\nC: d\r\n", b"get /"]
)
def test_each_cut_of_a_bad_start_is_refused_where_it_shows(bad: bytes) -> None:
    with pytest.raises(RequestError):
        check_start(bad)
    for cut in range(1, len(bad)):
        seen = 0
        with pytest.raises(RequestError):
            for end in (cut, len(bad)):
                check_start(bad[:end], seen)
                seen = end


def test_what_was_seen_is_not_looked_at_again() -> None:
    """A lone LF in what was judged before changes nothing: so it was not read a second time."""
    head = b"GET / HTTP/1.1\r\nA: b\nC: d\r\n"
    check_start(head + b"E: f\r\n", len(head))
    with pytest.raises(RequestError):
        check_start(head + b"E: f\n", len(head))
    good = b"GET / HTTP/1.1\r\nA: b\r\n\r\n"
    for cut in range(1, len(good)):  # also between CR and LF
        check_start(good, cut)


async def test_any_cut_of_a_head_gives_the_same_request() -> None:
    rng = random.Random(5)
    request = post(chat_body(), extra=[f"X-{n}: {n}" for n in range(9)])
    async with rig(GOOD) as running:
        peer = await running.connect()
        for _ in range(30):
            raw = rng.choice((b"", b"\r\n", b"\r\n\r\n")) + request
            cuts = sorted(rng.sample(range(1, len(raw)), rng.randrange(1, 12)))
            for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
                await peer.send(raw[start:end])
                await asyncio.sleep(0.001)
            assert (await peer.reply()).status == 200
        # two at once, the second in drops behind the first
        await peer.send(request + request[:7])
        assert (await peer.reply()).status == 200
        for at in range(7, len(request)):
            await peer.send(request[at : at + 1])
        assert (await peer.reply()).status == 200
        assert len({seen.head for seen in running.seen}) == 1
        assert len(running.seen) == 32


async def test_a_lone_lf_in_a_later_piece_is_refused() -> None:
    async with rig(GOOD) as running:
        peer = await running.connect()
        for piece in (b"GET / HTTP/1.1\r", b"\nHost: x\r\n", b"A: b\n", b"\r\n"):
            await peer.send(piece)
            await asyncio.sleep(0.02)
        assert (await peer.reply("GET")).status == 400
        assert not running.seen
