"""Answers that take too long, and clients that do not wait for theirs."""

from __future__ import annotations

import asyncio
import socket

import pytest

from .engine import (
    BEGUN,
    GOOD,
    LAST,
    SSE_HEAD,
    STREAM,
    Engine,
    Out,
    Seen,
    chat_body,
    chunk,
    event,
    hangs,
    streams,
)
from .rig import ends_with_error, post, rig


async def test_long_hold_is_released_by_size_and_by_time() -> None:
    comment = b": " + b"p" * 2000 + b"\n\n"
    limits = {"hold_bytes": 4096}
    async with rig(streams(*[comment] * 5, pause=0.01), limits=limits) as running:
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        reply = await peer.reply(until=comment)
        assert reply.status == 200

    async def only_head(seen: Seen, out: Out) -> None:
        await out.send(SSE_HEAD)
        await asyncio.sleep(0.6)
        await out.send(chunk(*STREAM) + LAST)

    async with rig(only_head, limits={"hold_s": 0.2}) as running:
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        early = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), 0.5)
        assert early == SSE_HEAD
        assert (await peer.reader.readuntil(LAST)) == chunk(*STREAM) + LAST

    async def slow(seen: Seen, out: Out) -> None:
        await out.send(SSE_HEAD + chunk(b": ping\n\n"))
        await asyncio.sleep(1.0)
        await out.send(chunk(*STREAM) + LAST)

    async with rig(slow, limits={"hold_s": 0.2}) as running:
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        reply = await asyncio.wait_for(peer.reply(until=b": ping\n\n"), 0.8)
        assert reply.status == 200
        await asyncio.sleep(0.9)


# Time-outs and clients that go


async def test_silence_inside_an_answer() -> None:
    async def stalls(seen: Seen, out: Out) -> None:
        await out.send(BEGUN)
        await asyncio.sleep(30)

    async with rig(stalls, timeouts={"idle_s": 0.2}) as running:
        reply = await running.chat(stream=True)
        assert ends_with_error(reply.body) == "timeout"


async def test_total_time_is_bounded() -> None:
    async def drips(seen: Seen, out: Out) -> None:
        await out.send(BEGUN)
        for _ in range(1000):
            await out.send(chunk(event("x")), pause=0.02)

    async with rig(drips, timeouts={"total_s": 0.5}) as running:
        reply = await running.chat(stream=True)
        assert ends_with_error(reply.body) == "timeout"
    async with rig(Engine(hangs), Engine(hangs), timeouts={"total_s": 0.3}) as running:
        reply = await running.chat()
        assert reply.status == 504
        assert len(running.seen) == 1


async def test_first_byte_time_out_moves() -> None:
    async with rig(Engine(hangs), Engine(GOOD), timeouts={"first_byte_s": 0.2}) as running:
        for _ in range(2):
            assert (await running.chat()).status == 200
        assert running.router.metrics.counts["warmlane_retries_total"] == {
            ("default", "timeout"): 1
        }


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_client_gone_cancels_the_replica(reset: bool, begun: bool) -> None:
    async def endless(seen: Seen, out: Out) -> None:
        if begun:
            await out.send(SSE_HEAD)
            while True:
                await out.send(chunk(event("x")), pause=0.01)
        await asyncio.sleep(30)

    engine = Engine(endless)
    async with rig(engine) as running:
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        if begun:
            await peer.reply(until=b"x")
        await asyncio.wait_for(engine.arrived.wait(), 5)
        if reset:
            peer.reset()
        else:
            peer.close()
        await asyncio.wait_for(engine.lost.wait(), 2)
        await running.settled()
        assert running.count("client_gone_total") == 1
        assert len(running.seen) == 1


async def test_client_gone_while_connecting() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        dead = Engine()
        dead.port = full.getsockname()[1]
        async with rig(dead) as running:
            peer = await running.connect()
            await peer.send(post(chat_body()))
            await asyncio.sleep(0.1)
            assert running.router.open_tickets == 1
            peer.close()
            await running.settled()
