"""The choices fail before the first byte: the rest of the pool is asked, over real sockets."""

from __future__ import annotations

import pytest

from warmlane.router.types import ReplicaState

from .engine import (
    DONE,
    ERROR_EVENT,
    FULL,
    GOOD,
    SSE_HEAD,
    STREAM,
    Engine,
    Out,
    Script,
    Seen,
    chat_body,
    chunk,
    event,
    says,
    says_then_closes,
    streams,
    whole,
)
from .rig import Rig, post, rig

FAULTS = {
    "closes": says_then_closes(),
    "resets": says_then_closes(reset=True),
    "half a head": says_then_closes(b"HTTP/1.1 200 OK\r\ncont"),
    "a head and no token": says_then_closes(SSE_HEAD + chunk(event(role=True)), reset=True),
    "an error event": says(SSE_HEAD, chunk(event(role=True)), chunk(ERROR_EVENT, DONE)),
    "gateway": says(whole(b"<html>", 502, "text/html")),
    "not HTTP": says_then_closes(b"SSH-2.0-x\r\n"),
}
LASTING = {"failures": 1000, "share": 1.0, "min_requests": 1000}


def set_state(running: Rig, engine: Engine, state: ReplicaState, **more: bool) -> None:
    pool = running.router.pools["default"]
    slot = next(each.slot for each in pool if each.spec.url == engine.url)
    pool.set_state(slot, state, "probe: test", **more)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
async def test_one_that_was_ejected_at_the_decision_serves(fault: str, stream: bool) -> None:
    bad, other = Engine(FAULTS[fault]), Engine(streams(*STREAM) if stream else GOOD)
    async with rig(bad, other) as running:
        set_state(running, other, ReplicaState.EJECTED)
        reply = await running.chat(stream=stream)
        assert reply.status == 200, reply
        assert not stream or (DONE in reply.body and reply.error == "")
        assert [len(engine.seen) for engine in (bad, other)] == [1, 1]
        counts = running.router.metrics.counts["warmlane_last_resort_total"]
        assert counts == {("default", "retry"): 1}


@pytest.mark.parametrize("state", [ReplicaState.EJECTED, ReplicaState.JOINING])
async def test_a_decision_without_anybody_ready_still_serves(state: ReplicaState) -> None:
    engines = Engine(says_then_closes(reset=True)), Engine(GOOD)
    async with rig(*engines, debug_headers=True, ejection=LASTING) as running:
        for engine in engines:
            set_state(running, engine, state)
        for _ in range(4):
            reply = await running.chat()
            assert reply.status == 200
            replica = reply.header(b"x-warmlane-replica")
            assert replica == f"127.0.0.1:{engines[1].port}".encode()
        counts = running.router.metrics.counts["warmlane_last_resort_total"]
        assert counts["default", "decision"] == 4


async def test_ready_ones_beyond_the_choices_are_asked() -> None:
    """A decision names five; a pool may hold more that are well."""
    asked = 0

    async def five_fail(seen: Seen, out: Out) -> None:
        nonlocal asked
        asked += 1
        if asked <= 5:
            out.reset()
        else:
            await GOOD(seen, out)

    engines = [Engine(five_fail) for _ in range(7)]
    retry = {"attempts": 9, "budget_min": 20}
    async with rig(*engines, retry=retry, ejection=LASTING, debug_headers=True) as running:
        set_state(running, engines[0], ReplicaState.EJECTED)
        reply = await running.chat()
        assert reply.status == 200
        assert reply.header(b"x-warmlane-hit-tokens") == b"0"
        assert [len(engine.seen) for engine in engines] == [0, 1, 1, 1, 1, 1, 1]
        assert running.count("last_resort_total") == 0


async def test_limits_hold_in_the_last_resort_too() -> None:
    engines = [Engine(says_then_closes(reset=True)) for _ in range(4)]
    for settings, tries in (({"attempts": 3}, 3), ({"budget_min": 1, "budget_ratio": 0.0}, 2)):
        async with rig(*engines, retry=settings, ejection=LASTING) as running:
            before = len(running.seen)
            for engine in engines[1:]:
                set_state(running, engine, ReplicaState.EJECTED)
            reply = await running.chat()
            assert reply.status == 502
            assert len(running.seen) - before == tries
        for engine in engines:
            engine.port = 0


async def test_a_full_replica_gives_no_reason_to_ask_an_ill_one() -> None:
    """The client keeps the refusal with its Retry-After."""
    full, ill = Engine(says(FULL)), Engine(GOOD)
    async with rig(full, ill) as running:
        set_state(running, ill, ReplicaState.EJECTED)
        reply = await running.chat()
        assert reply.status == 503
        assert b"queue full" in reply.body
        assert not ill.seen


async def test_one_that_says_it_sleeps_is_not_asked() -> None:
    async with rig(GOOD) as running:
        set_state(running, running.engines[0], ReplicaState.EJECTED, unwilling=True)
        reply = await running.chat()
        assert reply.status == 503 and reply.header(b"retry-after")
        assert not running.seen


async def test_a_refused_connection_moves_to_an_ejected_one() -> None:
    dead, other = Engine(GOOD), Engine(GOOD)
    async with rig(dead, other) as running:
        await dead.stop()
        set_state(running, other, ReplicaState.EJECTED)
        assert (await running.chat()).status == 200
        peer = await running.connect()
        for _ in range(3):  # kept connections take the same way
            await peer.send(post(chat_body()))
            assert (await peer.reply()).status == 200


async def test_a_begun_stream_never_moves() -> None:
    script: Script = says_then_closes(SSE_HEAD + chunk(*STREAM[:3]), reset=True)
    bad, other = Engine(script), Engine(GOOD)
    async with rig(bad, other) as running:
        set_state(running, other, ReplicaState.EJECTED)
        reply = await running.chat(stream=True)
        assert reply.status == 200
        assert b"upstream_broken" in reply.body and DONE not in reply.body
        assert not other.seen
