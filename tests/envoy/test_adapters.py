"""The endpoint picker names a replica only once it has the request's adapter: real engines' HTTP,
a real gRPC channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.common import until
from tests.envoy import gateway as envoy
from tests.envoy import rig
from tests.envoy.gateway import Answer
from tests.envoy.transports import NAMES
from warmlane.envoy.server import Server
from warmlane.router.sim.server import FakeEngine, FakeOptions

ENGINE = {"speed": 50.0, "enable_lora": True, "max_loras": 4, "model": "m"}


def body(model: str) -> bytes:
    return json.dumps({"model": model, "prompt": "a question", "max_tokens": 4}).encode()


@asynccontextmanager
async def fleet(
    transport: str, *engines: dict[str, Any], **more: Any
) -> AsyncIterator[tuple[Server, list[FakeEngine]]]:
    started = [FakeEngine(FakeOptions(**{**ENGINE, **each})) for each in engines]
    for engine in started:
        await engine.start()
    adapters = {"mode": "load", "sources": {"ad-*": "/lora/"}, "load_s": 5.0}
    pools = [{"replicas": [engine.url for engine in started], "adapters": adapters}]
    try:
        async with rig.picker(transport=transport, pools=pools, **more) as server:
            (pool,) = server.running.router.pools.values()
            await until(lambda: all(each.models is not None for each in pool))
            yield server, started
            await until(lambda: server.picker.open == 0)
            assert server.running.router.open_tickets == 0 and server.picker.buffered == 0
            assert not any(pool.adapters.seat(each.slot).busy for each in pool)
    finally:
        for engine in started:
            await engine.close()


async def choice(channel: Any, model: str) -> Answer:
    """The answer that tells the choice; the stream is then at its end."""
    stream = rig.Stream(channel)
    await stream.say(envoy.request_headers(path="/v1/completions"), envoy.request_body(body(model)))
    (head,) = await stream.hear(1)
    if head.kind == "request_headers":
        (piece,) = await stream.hear(1)
        assert piece.piece == (body(model), True)
        await stream.say(envoy.response_headers(), envoy.response_body(b"{}"))
        await stream.hear(2)
        assert await stream.end() == 0
    return head


def endpoint(engine: FakeEngine) -> str:
    return engine.url.removeprefix("http://")


@pytest.mark.parametrize("transport", NAMES)
async def test_the_choice_waits_for_the_load(transport: str) -> None:
    async with (
        fleet(transport, {"adapter_load_s": 0.2}, {"adapter_load_s": 0.2}) as (server, engines),
        rig.channel(server) as channel,
    ):
        heads = await asyncio.gather(*(choice(channel, "ad-1") for _ in range(8)))
        homes = {endpoint(each) for each in engines if "ad-1" in each.models.adapters}
        assert {head.endpoint for head in heads} <= homes
        assert sum(each.models.loads for each in engines) == len(homes)
        before = sum(each.models.loads for each in engines)
        assert (await choice(channel, "ad-1")).endpoint in homes
        assert sum(each.models.loads for each in engines) == before


async def test_the_next_choice_where_the_first_cannot_load() -> None:
    async with (
        fleet("grpcio", {"adapter_root": "/else"}, {}) as (server, engines),
        rig.channel(server) as channel,
    ):
        for name in ("ad-1", "ad-2", "ad-3"):
            assert (await choice(channel, name)).endpoint == endpoint(engines[1])


async def test_an_adapter_that_is_nowhere_is_refused() -> None:
    root = {"adapter_root": "/else"}
    async with fleet("grpcio", root, root) as (server, _), rig.channel(server) as channel:
        for _ in range(2):
            head = await choice(channel, "ad-1")
            assert head.kind == "immediate_response" and head.status == 404
            assert b"model_not_found" in head.message.immediate_response.body


async def test_an_ordered_list_names_only_those_that_have_it() -> None:
    async with (
        fleet("grpcio", {}, {}, {"loras": ("ad-2",)}, endpoints="ordered") as (server, engines),
        rig.channel(server) as channel,
    ):
        assert (await choice(channel, "ad-2")).endpoint == endpoint(engines[2])
        assert len((await choice(channel, "m")).endpoint.split(",")) == 3


@pytest.mark.parametrize("transport", NAMES)
async def test_a_stream_that_ends_while_it_waits_leaves_nothing(transport: str) -> None:
    async with (
        fleet(transport, {"adapter_load_s": 0.5}) as (server, engines),
        rig.channel(server) as channel,
    ):
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(path="/v1/completions"))
        await stream.say(envoy.request_body(body("ad-1")))
        await until(lambda: server.running.router.open_tickets == 1)
        stream.call.cancel()
        await until(lambda: server.running.router.open_tickets == 0)
        assert (await choice(channel, "ad-1")).endpoint == endpoint(engines[0])
        assert engines[0].models.loads == 1


async def test_a_404_of_the_engine_corrects_its_list() -> None:
    async with (
        fleet("grpcio", {"loras": ("ad-1",)}) as (server, engines),
        rig.channel(server) as channel,
    ):
        engines[0].models.adapters.clear()
        stream = rig.Stream(channel)
        await stream.say(envoy.request_headers(path="/v1/completions"))
        await stream.say(envoy.request_body(body("ad-1")))
        await stream.hear(2)
        await stream.say(envoy.response_headers(status=404), envoy.response_body(b"{}"))
        await stream.hear(2)
        assert await stream.end() == 0
        assert (await choice(channel, "ad-1")).endpoint == endpoint(engines[0])
        assert engines[0].models.loads == 1
