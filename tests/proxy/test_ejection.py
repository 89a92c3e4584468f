"""What outlives a failed request: ejection, replicas that leave, bugs of our own."""

from __future__ import annotations

import asyncio

import pytest

from warmlane.router.types import ReplicaState

from .engine import (
    DONE,
    FULL,
    GOOD,
    LAST,
    STREAM,
    Engine,
    Out,
    Script,
    Seen,
    chat_body,
    event,
    says,
    says_then_closes,
    streams,
    whole,
)
from .rig import get, post, rig


async def test_ejection_and_return() -> None:
    ejection = {"failures": 3, "base_s": 0.3}
    bad = Engine(says_then_closes(), says_then_closes(), says_then_closes(), GOOD)
    async with rig(bad, Engine(GOOD), ejection=ejection) as running:
        for _ in range(12):
            assert (await running.chat()).status == 200
        assert len(bad.seen) == 3
        assert running.count("ejections_total") == 1
        await asyncio.sleep(0.8)
        for _ in range(6):
            assert (await running.chat()).status == 200
        assert len(bad.seen) > 3


async def test_refusals_never_eject() -> None:
    raw = [whole(b"{}", 400), whole(b'{"error":{"message":"m"}}', 429), FULL]
    async with rig(Engine(*[says(each) for each in raw * 10]), ejection={"failures": 2}) as running:
        for _ in range(20):
            await running.chat()
        assert running.count("ejections_total") == 0


async def test_no_replica_ready() -> None:
    async with rig(GOOD) as running:
        pool = running.router.pools["default"]
        pool.drain(pool.replicas[0].name)  # type: ignore[union-attr]
        reply = await running.chat()
        assert reply.status == 503
        assert reply.header(b"retry-after")
        assert (await running.ask(get("/health"), "GET")).status == 503


async def test_an_ejected_replica_is_asked_before_a_request_is_given_up() -> None:
    """It may be well again, or only too busy to answer its probe in time."""
    dies = [asyncio.Event(), asyncio.Event()]

    def mortal(number: int) -> Script:
        async def script(seen: Seen, out: Out) -> None:
            await dies[number].wait()
            out.reset()

        return script

    engines = [Engine(mortal(0), GOOD), Engine(mortal(1), GOOD)]
    async with rig(*engines) as running:
        pool = running.router.pools["default"]
        asked = asyncio.create_task(running.chat())
        while not running.seen:  # noqa: ASYNC110 - the engines have no event for it
            await asyncio.sleep(0.005)
        first = 0 if engines[0].seen else 1
        other = 1 - first
        engines[other].scripts = [GOOD]
        slot = next(each.slot for each in pool if each.spec.url == engines[other].url)
        pool.set_state(slot, ReplicaState.EJECTED, "probe: too slow")
        dies[first].set()
        assert (await asked).status == 200
        assert len(engines[other].seen) == 1


async def test_removed_replica_finishes_its_requests() -> None:
    async with rig(streams(*STREAM, pause=0.05)) as running:
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True)))
        await peer.reply(until=b"one")
        pool = running.router.pools["default"]
        pool.remove(pool.replicas[0].name, 0.0)  # type: ignore[union-attr]
        rest = await peer.at_end() if peer.closed else b""
        while not rest.endswith(LAST):
            rest += await peer.reader.read(65536)
        assert DONE in rest
        await asyncio.sleep(0.1)
        assert not running.proxy.state.links.connections


@pytest.mark.parametrize("where", ["ask", "first_token", "close", "progress"])
async def test_bug_of_the_router_costs_one_request(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events = [event(role=True), *[event("x")] * 40, event("", "stop"), DONE]
    pool = {"policy": "round-robin"}  # the other path has its own such test
    async with rig(streams(*events, pause=0.002), pool=pool) as running:
        with monkeypatch.context() as patch:

            def breaks(*args: object) -> None:
                raise ZeroDivisionError

            patch.setattr(running.router, where, breaks)
            peer = await running.connect()
            await peer.send(post(chat_body(stream=True)))
            reply = await peer.reply()
            assert reply.status == 500 or reply.error or where == "close"
        assert "a request failed inside the router" in caplog.text
        assert running.proxy.inflight == 0
        assert (await running.chat(stream=True)).status == 200
        for pool in running.router.lanes.values():  # the one whose close was broken
            pool.maintain(1e12, 1e12, 1000)
