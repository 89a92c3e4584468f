"""The exchange between routers on real servers: Valkey and Redis, lost, back, closed, forbidden."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
import redis.asyncio as client

from tests.common import until
from tests.share_server import Server
from warmlane.router.build import Running, build
from warmlane.router.config import Config, PoolConfig
from warmlane.router.config_share import Sharing
from warmlane.router.errors import ConfigError
from warmlane.router.types import Kind, ReplicaSpec, ReplicaState, Request

LONG = b"a long prompt that is worth a hit " * 300
WAIT_S = 20.0


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    made = Server(request.param)
    made.start()
    yield made
    made.close()


@pytest.fixture
def valkey() -> Iterator[Server]:
    made = Server("valkey")
    yield made
    made.close()


@asynccontextmanager
async def routers(url: str, count: int, **more: Any) -> AsyncIterator[list[Running]]:
    """Running routers of one namespace before two replicas that nobody answers for."""
    share = Sharing(url=url, interval_s=0.02, expire_s=0.6, timeout_s=0.3, **more)
    specs = [ReplicaSpec(url=f"http://127.0.0.1:{port}") for port in (1, 2)]
    config = Config(pools=[PoolConfig(models=["m"], replicas=specs)], share=share)
    found = [await build(config) for _ in range(count)]
    try:
        yield found
    finally:
        for each in found:
            await each.close()


def heard(running: Running) -> int:
    return 0 if running.sharing is None else len(running.sharing.sharer.peers)


def connected(running: Running) -> float:
    return running.metrics.gauges["warmlane_share_connected"][()]


def send(running: Running) -> int:
    """A request on the first replica of a router."""
    pool = running.router.pools["default"]
    pool.set_state(0, ReplicaState.READY)
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=LONG)
    decision = running.router.decide(request, monotonic(), 1)
    running.router.sent(decision.ticket, decision.choices[0], monotonic())
    return decision.choices[0]


def foreign(running: Running, slot: int) -> float:
    return running.router.pools["default"].foreign.requests[slot]


async def test_routers_hear_each_other(server: Server) -> None:
    async with routers(server.url, 3) as (a, b, c):
        await until(lambda: all(heard(each) == 2 for each in (a, b, c)))
        slot = send(a)
        await until(lambda: foreign(b, slot) == foreign(c, slot) == 1)
        assert foreign(a, slot) == 0
        text = b.metrics.render().decode()
        assert "warmlane_share_peers 2.0" in text and "warmlane_share_connected 1.0" in text
        replica = f'pool="default",replica="127.0.0.1:{slot + 1}"'
        assert f"warmlane_replica_foreign_requests{{{replica}}} 1.0" in text
        await a.close()
        await until(lambda: heard(b) == heard(c) == 1 and foreign(b, slot) == 0)


async def test_a_message_of_megabytes_arrives_whole(server: Server) -> None:
    """It comes in many reads, and intervals end in the middle of it."""
    async with routers(server.url, 2, prefix_bytes=8_000_000) as (a, b):
        await until(lambda: heard(a) == heard(b) == 1)
        pool = a.router.pools["default"]
        pool.set_state(0, ReplicaState.READY)
        prompts = [b"%d" % number * 40_000 for number in range(100, 200)]
        for prompt in prompts:
            request = Request(kind=Kind.COMPLETIONS, model="m", prompt=prompt)
            decision = a.router.decide(request, monotonic(), 1)
            a.router.sent(decision.ticket, decision.choices[0], monotonic())
        slot = decision.choices[0]
        await until(lambda: foreign(b, slot) == len(prompts))
        b.router.pools["default"].set_state(slot, ReplicaState.READY)
        hits = b.router.decide(request, monotonic(), 1).hit_tokens[0]
        assert hits > 0.9 * len(prompts[-1]) / 4
        assert not b.metrics.counts["warmlane_share_troubles_total"]


async def test_a_lost_server_is_noticed_and_comes_back(
    valkey: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "warmlane.share")
    slots: list[int] = []
    async with routers(valkey.url, 2) as (a, b):  # not there yet: they serve all the same
        await until(lambda: connected(a) == 0 and "state=lost" in caplog.text)
        for _ in range(2):
            valkey.start()
            await until(lambda: heard(a) == heard(b) == 1 and connected(a) == 1)
            slots.append(send(a))
            await until(lambda: foreign(b, slots[-1]) > 0)
            caplog.clear()
            valkey.stop()
            await until(lambda: connected(a) == connected(b) == 0)
            await until(lambda: heard(b) == 0 and foreign(b, slots[-1]) == 0)
            await asyncio.sleep(0.5)
            assert caplog.text.count("state=lost") == 2  # once for each router


async def test_a_server_that_hangs_counts_as_lost(valkey: Server) -> None:
    valkey.start()
    async with routers(valkey.url, 2) as (a, b):
        await until(lambda: heard(a) == heard(b) == 1)
        admin = client.Redis.from_url(valkey.url)
        await admin.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        await until(lambda: connected(a) == connected(b) == 0)
        await until(lambda: heard(a) == heard(b) == 1 and connected(a) == 1)
        await admin.aclose()


async def test_namespaces_do_not_mix_and_strangers_do_no_harm(valkey: Server) -> None:
    valkey.start()
    async with routers(valkey.url, 1) as (a,), routers(valkey.url, 1, namespace="other") as (b,):
        await until(lambda: connected(a) == connected(b) == 1)
        stranger = client.Redis.from_url(valkey.url)
        assert await stranger.publish("warmlane:routers", b"hello") == 1
        await until(lambda: bool(a.metrics.counts["warmlane_share_troubles_total"]))
        assert heard(a) == heard(b) == 0 and connected(a) == 1
        assert not b.metrics.counts["warmlane_share_troubles_total"]
        await stranger.aclose()


async def test_a_user_that_may_do_nothing_else(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    valkey.start()
    admin = client.Redis.from_url(valkey.url)
    rules = ["on", ">word", "resetchannels", "&warmlane:*", "-@all", "+publish", "+subscribe"]
    await admin.execute_command("ACL", "SETUSER", "router", *rules, "+unsubscribe")
    url = valkey.url.replace("unix://", "unix://router@")
    monkeypatch.setenv("SHARE_WORD", "word")
    async with routers(url, 2, password_env="SHARE_WORD") as (a, b):
        await until(lambda: heard(a) == heard(b) == 1)
    monkeypatch.setenv("SHARE_WORD", "wrong-word")
    async with routers(url, 1, password_env="SHARE_WORD") as (a,):
        await until(lambda: "state=lost" in caplog.text)
    assert "word" not in caplog.text.replace("password", "").replace("username", "")
    await admin.aclose()


async def test_a_password_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARE_WORD", raising=False)
    with pytest.raises(ConfigError, match="SHARE_WORD"):
        async with routers("redis://127.0.0.1:1", 1, password_env="SHARE_WORD"):
            raise AssertionError("it started")
    with pytest.raises(ConfigError, match="password_file"):
        async with routers("redis://127.0.0.1:1", 1, password_file="/nowhere"):
            raise AssertionError("it started")
