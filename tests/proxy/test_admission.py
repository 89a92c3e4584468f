"""Requests past saturation, through the proxy: they wait, go, time out, and leave the queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import msgspec
import pytest

from tests.common import until
from warmlane.router.admission import Gate
from warmlane.router.types import ReplicaState

from .engine import LAST, SSE_HEAD, STREAM, Out, Script, Seen, chat_body, chunk, says, whole
from .rig import Rig, post, rig

FULL = 2  # requests without a first token that one engine has when it has no room
PROMPT = [{"role": "user", "content": "x" * 4000}]


def gated(*gates: asyncio.Event) -> Script:
    """An engine that answers its n-th request once the n-th gate is open."""
    left = list(gates)

    async def script(seen: Seen, out: Out) -> None:
        if left:
            await left.pop(0).wait()
        await out.send(SSE_HEAD + chunk(*STREAM) + LAST)

    return script


@asynccontextmanager
async def tended(*engines: Script, **admission: Any) -> AsyncIterator[tuple[Rig, Gate]]:
    """A rig with admission and the maintenance that a running router has."""
    settings = {"enabled": True, "backlog_s": 0.001, "unstarted": 1, **admission}
    async with rig(*engines, admission=settings) as running:
        router, loop = running.router, asyncio.get_running_loop()
        router.wake = lambda: loop.call_soon(lambda: router.release(monotonic())) and None

        async def tend() -> None:
            while True:
                router.maintain(monotonic())
                await asyncio.sleep(0.01)

        task = asyncio.create_task(tend())
        gate = router.lanes["default"].gate
        assert gate is not None
        try:
            await until(lambda: not gate.active)
            yield running, gate
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def follow(running: Rig, **changes: Any) -> None:
    """As a reload of the config file with other settings of admission."""
    config = running.router.config
    admission = msgspec.structs.replace(config.admission, **changes)
    config = msgspec.structs.replace(config, admission=admission)
    running.router.reload(config, monotonic())
    running.proxy.state.follow(config)


def ask(running: Rig, name: str = "", *extra: str) -> asyncio.Task[Any]:
    body = chat_body(stream=True, messages=PROMPT, user=name)
    return asyncio.create_task(running.ask(post(body, extra=extra)))


async def saturate(running: Rig, gate: Gate) -> list[asyncio.Task[Any]]:
    """As many as there is room for; they are seen to be too many."""
    before = len(running.seen)
    tasks = [ask(running) for _ in range(FULL * len(running.engines))]
    await until(lambda: len(running.seen) == before + len(tasks) and gate.active)
    return tasks


async def test_it_waits_and_goes_when_an_engine_has_room() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    async with tended(gated(first, second)) as (running, gate):
        under_way = await saturate(running, gate)
        waits = ask(running)
        await until(lambda: gate.queue)
        assert len(running.seen) == FULL
        first.set()
        assert (await waits).status == 200
        second.set()
        assert [(await each).status for each in under_way] == [200, 200]
        assert running.count("admission_total") == 2, "queued, then admitted"


async def test_a_client_that_leaves_is_taken_out_at_once() -> None:
    gate_open = asyncio.Event()
    async with tended(gated(gate_open, gate_open)) as (running, gate):
        under_way = await saturate(running, gate)
        peer = await running.connect()
        await peer.send(post(chat_body(stream=True, messages=PROMPT)))
        await until(lambda: gate.queue)
        peer.reset()
        await until(lambda: not gate.queue)
        gate_open.set()
        assert [(await each).status for each in under_way] == [200, 200]
        assert len(running.seen) == FULL, "nobody works for the one that left"
        assert gate.queue.bytes == 0


@pytest.mark.parametrize(
    ("settings", "header", "code"),
    [
        ({}, "x-warmlane-deadline-ms: 50", "queue_timeout"),
        ({"wait_s": 0.05}, "x-warmlane-deadline-ms: soon", "queue_timeout"),
        ({"queue_bytes": 10}, "x-a: b", "queue_full"),
        ({}, "x-vllm-priority: 3", "low_priority_shed"),
    ],
)
async def test_refusals(settings: dict[str, Any], header: str, code: str) -> None:
    gate_open = asyncio.Event()
    async with tended(gated(gate_open, gate_open), **settings) as (running, gate):
        under_way = await saturate(running, gate)
        reply = await ask(running, "", header)
        assert reply.status == 429
        assert reply.json["error"]["code"] == code
        assert reply.json["error"]["type"] == "rate_limit_error"
        assert int(reply.header(b"retry-after") or b"0") >= 1
        assert running.router.metrics.counts["warmlane_rejected_total"][(code,)] == 1
        gate_open.set()
        assert [(await each).status for each in under_way] == [200, 200]


async def test_a_reload_lets_those_go_who_have_room_now() -> None:
    """Also where it switches admission off, and on again in the same proxy."""
    events = [asyncio.Event() for _ in range(12)]
    async with tended(gated(*events)) as (running, gate):
        first = await saturate(running, gate)
        waits = ask(running)
        await until(lambda: gate.queue)
        follow(running, backlog_s=100.0)
        await until(lambda: len(running.seen) == FULL + 1)
        follow(running, backlog_s=0.001)
        more = [ask(running) for _ in range(4)]
        await until(lambda: len(gate.queue) == 4)
        follow(running, enabled=False)
        await until(lambda: len(running.seen) == FULL + 5)
        follow(running, enabled=True)
        await until(lambda: gate.active)
        last = ask(running)
        await until(lambda: gate.queue)
        for each in events:
            each.set()
        replies = [await each for each in (*first, waits, *more, last)]
        assert {each.status for each in replies} == {200}
        assert not gate.queue


async def test_it_waits_for_a_replica_to_come_up() -> None:
    async with tended(says(whole(b'{"choices": [{"finish_reason": "stop"}]}'))) as (running, gate):
        pool = running.router.pools["default"]
        pool.set_state(0, ReplicaState.EJECTED, "probe: test")
        waits = ask(running)
        await until(lambda: gate.queue)
        assert not running.seen
        pool.set_state(0, ReplicaState.READY, "probe: test")
        assert (await waits).status == 200


async def test_after_the_waiting_room_the_last_resort_is_asked() -> None:
    answers = says(whole(b'{"choices": [{"finish_reason": "stop"}]}'))
    async with tended(answers, room_s=0.05) as (running, _):
        pool = running.router.pools["default"]
        pool.set_state(0, ReplicaState.EJECTED, "probe: test")
        assert (await ask(running)).status == 200
        assert running.count("last_resort_total") == 1


async def test_a_tenant_that_floods_does_not_delay_another() -> None:
    gates = [asyncio.Event() for _ in range(24)]
    async with tended(gated(*gates), tenant="user", age_s=1000.0) as (running, gate):
        under_way = await saturate(running, gate)
        flood = [ask(running, "flood") for _ in range(20)]
        await until(lambda: len(gate.queue) == 20)
        calm = [ask(running, "calm") for _ in range(2)]
        await until(lambda: len(gate.queue) == 22)
        for number, each in enumerate(gates):
            each.set()
            await until(lambda number=number: len(running.seen) >= min(24, number + 3))
        replies = [await each for each in (*under_way, *flood, *calm)]
        assert {each.status for each in replies} == {200}
        order = [b'"calm"' in seen.body for seen in running.seen]
        assert order.index(True) < 7 and len(order) - 1 - order[::-1].index(True) < 12, order
