"""The probe against real HTTP servers: joining, ejecting, rejoining, model lists."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.common import until
from tests.router.feeds.engine import Engine
from warmlane.router.config import PoolConfig, Probe
from warmlane.router.feeds.client import EngineError, open_session
from warmlane.router.feeds.probe import Prober, model_list
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool
from warmlane.router.types import LoadSnapshot, ModelList, ReplicaSpec, ReplicaState


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    session = open_session(4.0)
    yield session
    await session.close()


def prober(
    session: aiohttp.ClientSession, engine: Engine, key: str = "", **config: object
) -> Prober:
    pool = Pool(PoolConfig(), initial=ReplicaState.JOINING)
    replica = pool.replicas[pool.add(ReplicaSpec(url=engine.url), 0.0)]
    assert replica is not None
    return Prober(
        pool,
        replica,
        session,
        Probe(**config),  # type: ignore[arg-type]
        headers={"Authorization": f"Bearer {key}"} if key else {},
        metrics=Metrics(),
    )


def state(one: Prober) -> ReplicaState:
    return one.replica.state


async def test_the_first_success_makes_it_ready(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        engine.health = 503
        one = prober(session, engine)
        for _ in range(5):
            assert not await one.once()
        assert state(one) is ReplicaState.JOINING  # never ejected before it was in
        engine.health = 200
        assert await one.once()
        assert state(one) is ReplicaState.READY
        assert one.replica.models == ModelList(models=frozenset({"tiny"}), max_model_len=2048)


async def test_failures_in_a_row_eject_and_two_good_probes_bring_back(
    session: aiohttp.ClientSession,
) -> None:
    async with Engine() as engine:
        one = prober(session, engine, failures=3)
        await one.once()
        for health in (503, 503, 200, 503, 503):
            engine.health = health
            await one.once()
        assert state(one) is ReplicaState.READY
        await one.once()
        assert state(one) is ReplicaState.EJECTED
        assert one.metrics.counts["warmlane_ejections_total"] == {
            ("default", one.replica.name, "probe"): 1
        }
        engine.health = 200
        await one.once()
        assert state(one) is ReplicaState.EJECTED
        await one.once()
        assert state(one) is ReplicaState.READY


async def test_a_dead_process_is_ejected_and_its_successor_is_asked_anew(
    session: aiohttp.ClientSession,
) -> None:
    async with Engine() as engine:
        one = prober(session, engine, failures=2)
        await one.once()
        await engine.stop()
        await one.once()
        await one.once()
        assert state(one) is ReplicaState.EJECTED
        engine.models = {"data": [{"id": "other"}]}
        await engine.start()
        await one.once()
        await one.once()
        assert state(one) is ReplicaState.READY
        assert one.replica.models == ModelList(models=frozenset({"other"}))


async def test_a_passive_ejection_is_not_ended_by_the_probe(
    session: aiohttp.ClientSession,
) -> None:
    async with Engine() as engine:
        one = prober(session, engine)
        await one.once()
        one.pool.set_state(one.replica.slot, ReplicaState.EJECTED, "failing requests")
        for _ in range(4):
            await one.once()
        assert state(one) is ReplicaState.EJECTED


async def test_a_drained_replica_stays_drained(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        one = prober(session, engine, failures=1)
        await one.once()
        one.pool.drain(one.replica.name)
        await one.once()
        assert state(one) is ReplicaState.DRAINING
        engine.health = 503
        await one.once()
        assert state(one) is ReplicaState.DRAINING
        one.pool.undrain(one.replica.name)
        assert state(one) is ReplicaState.EJECTED


@pytest.mark.parametrize("how", ["paused", "asleep"])
async def test_an_engine_that_lets_requests_hang_is_out_at_once(
    session: aiohttp.ClientSession, how: str
) -> None:
    async with Engine() as engine:
        engine.paused = False
        one = prober(session, engine, failures=9)
        await one.once()
        assert state(one) is ReplicaState.READY

        def hold(on: bool) -> None:
            if how == "paused":
                engine.paused = on
            else:
                one.pool.update_load(one.replica.slot, LoadSnapshot(taken_at=0.0, asleep=on))

        hold(True)
        await one.once()
        assert state(one) is ReplicaState.EJECTED
        assert how in one.replica.reason
        hold(False)
        await one.once()
        await one.once()
        assert state(one) is ReplicaState.READY


async def test_is_paused_is_asked_once_where_it_does_not_exist(
    session: aiohttp.ClientSession,
) -> None:
    async with Engine() as engine:
        one = prober(session, engine)
        for _ in range(3):
            await one.once()
        assert engine.seen["/is_paused"] == 1
        assert engine.seen["/v1/models"] == 1  # by its own, longer interval


@pytest.mark.parametrize("status", [401, 404, 405])
async def test_an_engine_without_a_health_path_lives(
    session: aiohttp.ClientSession, status: int
) -> None:
    async with Engine() as engine:
        engine.health = status
        one = prober(session, engine)
        assert await one.once()
        engine.models_status = 500
        one._models_due = 0.0
        assert not await one.once()


async def test_the_engine_key_is_sent_and_a_wrong_one_is_told(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "warmlane.feeds")
    async with Engine() as engine:
        engine.key = "sk-right"
        good = prober(session, engine, "sk-right")
        await good.once()
        assert good.replica.models is not None
        assert good.replica.models.models == {"tiny"}
        assert not caplog.records
        bad = prober(session, engine, "sk-wrong")
        assert await bad.once()
        assert state(bad) is ReplicaState.READY
        assert bad.replica.models == ModelList()
        (record,) = caplog.records
        assert "refuses our API key" in record.getMessage()
        assert "sk-" not in record.getMessage()


async def test_a_redirect_does_not_carry_the_key_away(session: aiohttp.ClientSession) -> None:
    async with Engine() as thief, Engine() as engine:
        engine.models = b""
        engine.models_status = 302
        one = prober(session, engine, "sk-x")
        assert await one.once()
        assert thief.seen == {}
        assert one.replica.models == ModelList()


def test_models_and_adapters() -> None:
    body = b"""{"object": "list", "data": [
        {"id": "tiny", "parent": null, "root": "./tiny", "max_model_len": 2048},
        {"id": "lora-0", "parent": "tiny", "root": "./lora-0", "max_model_len": null},
        {"id": 7}, "x", {"id": ""}, {"parent": "tiny"}]}"""
    assert model_list(body) == ModelList(
        models=frozenset({"tiny"}), adapters={"lora-0": "tiny"}, max_model_len=2048
    )


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": 1}', b"\xff\xfe", b"<html>"])
def test_what_is_no_model_list(body: bytes) -> None:
    with pytest.raises(EngineError):
        model_list(body)


async def test_joining_is_probed_soon_and_failures_are_confirmed_soon(
    session: aiohttp.ClientSession,
) -> None:
    async with Engine() as engine:
        one = prober(session, engine, interval_s=6.0, failures=3)
        assert one.delay_s() < 0.5
        await one.once()
        assert one.delay_s() > 5.0
        engine.health = 503
        await one.once()
        assert one.delay_s() < 3.0


async def test_run_ends_when_cancelled(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        one = prober(session, engine, interval_s=0.01)
        task = asyncio.create_task(one.run())
        await until(lambda: engine.seen.get("/health", 0) >= 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


async def test_failing_requests_hurry_a_probe(session: aiohttp.ClientSession) -> None:
    """An interval of ten minutes: what happens here happens because it was asked to."""
    async with Engine() as engine:
        one = prober(session, engine, interval_s=600.0, failures=3)
        task = asyncio.create_task(one.run())
        await until(lambda: state(one) is ReplicaState.READY)
        one.hurry()
        await until(lambda: engine.seen["/health"] == 2)
        await asyncio.sleep(0)
        assert state(one) is ReplicaState.READY  # it is well: the requests' own fault
        engine.health = 503
        one.hurry()
        await until(lambda: state(one) is ReplicaState.EJECTED)
        assert engine.seen["/health"] == 5
        one.hurry()  # nothing is sent there any more: no hurry
        await asyncio.sleep(0.3)
        assert engine.seen["/health"] == 5
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
