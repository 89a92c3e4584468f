"""The scrape loop against real HTTP servers that answer recorded and broken metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.common import until
from tests.router.feeds.engine import Engine, recorded, vllm_text
from warmlane.router.config import PoolConfig, Scrape
from warmlane.router.feeds.client import open_session
from warmlane.router.feeds.scrape import Pace, Scraper, metrics_origin
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool
from warmlane.router.types import LoadSnapshot, ReplicaSpec

_MADE: list[Scraper] = []  # by the running test


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    session = open_session(4.0)
    yield session
    await session.close()
    while _MADE:
        _MADE.pop().close()


def scraper(
    session: aiohttp.ClientSession,
    url: str,
    config: Scrape | None = None,
    **spec: object,
) -> Scraper:
    pool = Pool(PoolConfig(engine=str(spec.pop("engine", "auto"))))  # type: ignore[arg-type]
    slot = pool.add(ReplicaSpec(url=url, **spec), 0.0)  # type: ignore[arg-type]
    replica = pool.replicas[slot]
    assert replica is not None
    made = Scraper(
        pool,
        replica,
        session,
        config or Scrape(),
        headers={},
        metrics=Metrics(),
        pace=Pace(),
        clock=asyncio.get_running_loop().time,
    )
    _MADE.append(made)
    return made


async def test_a_recorded_scrape_reaches_the_pool(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        engine.metrics = recorded("vllm-0.32.0-main-busy")
        one = scraper(session, engine.url)
        assert await one.once()
        load = one.replica.load
        assert load is not None
        assert (load.waiting, load.running, load.num_blocks) == (8, 4, 160)
        assert one.metrics.counts["warmlane_scrapes_total"] == {("default", one.replica.name): 1}


async def test_a_failed_scrape_keeps_the_old_snapshot_and_says_so_once(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "warmlane.feeds")
    async with Engine() as engine:
        one = scraper(session, engine.url)
        engine.metrics = vllm_text(running=3)
        assert await one.once()
        before = one.replica.load
        engine.metrics_status = 500
        assert not await one.once()
        engine.metrics_status = 200
        engine.metrics = b"<html>not metrics</html>"
        assert not await one.once()
        assert one.replica.load is before
        engine.metrics = vllm_text(running=1)
        assert await one.once()
    await engine.stop()
    assert not await one.once()  # nobody listens any more
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "event=scrape_failing",
        "event=scrape_recovered",
        "event=scrape_failing",
    ]
    assert one.metrics.counts["warmlane_scrape_failures_total"] == {
        ("default", one.replica.name): 3
    }


async def test_a_slow_engine_does_not_hold_the_loop_up(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        engine.delay_s = 30.0
        one = scraper(session, engine.url, Scrape(timeout_s=0.05))
        async with asyncio.timeout(10):
            assert not await one.once()
        assert one.trouble == "no answer in 0.05 s"


async def test_a_huge_answer_is_refused(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        engine.metrics = vllm_text() * 1000
        one = scraper(session, engine.url, Scrape(max_bytes=10_000))
        assert not await one.once()
        assert one.trouble == "answer over 10000 bytes"


async def test_trtllm_is_found_on_its_own_path(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        engine.metrics_path = "/prometheus/metrics"
        engine.metrics = b"trtllm_num_requests_running 2\ntrtllm_num_requests_waiting 1\n"
        one = scraper(session, engine.url)
        assert await one.once()
        assert await one.once()
        assert engine.seen == {"/metrics": 1, "/prometheus/metrics": 2}
        assert one.replica.load is not None
        assert one.replica.load.running == 2


async def test_a_configured_dialect_is_not_guessed(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        one = scraper(session, engine.url, engine="sglang")
        assert not await one.once()  # it speaks vllm
        engine.metrics = b"sglang:num_running_reqs 2\nsglang:num_queue_reqs 1\n"
        assert await one.once()


async def test_metrics_on_another_port(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        one = scraper(session, "http://127.0.0.1:9", labels={"metrics_port": str(engine.port)})
        assert await one.once()
    spec = ReplicaSpec(url="https://[::1]:8000", labels={"metrics_port": "8002"})
    pool = Pool(PoolConfig())
    replica = pool.replicas[pool.add(spec, 0.0)]
    assert replica is not None
    assert metrics_origin(replica) == "https://[::1]:8002"


@pytest.mark.parametrize(
    ("first", "second", "restarts"),
    [
        (vllm_text(queries=500, hits=100), vllm_text(queries=600, hits=150), 0),
        (vllm_text(queries=500, hits=100), vllm_text(queries=20), 1),
        (vllm_text(queries=500, epoch=1), vllm_text(queries=900, epoch=2), 1),
        (vllm_text(queries=500), vllm_text(queries=500), 0),
    ],
    ids=["grown", "backwards", "another start time", "unchanged"],
)
async def test_a_restart_is_noticed(
    session: aiohttp.ClientSession, first: bytes, second: bytes, restarts: int
) -> None:
    async with Engine() as engine:
        one = scraper(session, engine.url)
        seen: list[LoadSnapshot | None] = []
        one.pool.on_load(lambda replica, previous: seen.append(previous))
        engine.metrics = first
        await one.once()
        engine.metrics = second
        await one.once()
        counts = one.metrics.counts["warmlane_engine_restarts_total"]
        assert sum(counts.values()) == restarts
        assert seen[0] is None
        assert seen[1] is not None
        assert seen[1].prefix_queries == 500


async def test_the_interval_follows_the_work(session: aiohttp.ClientSession) -> None:
    config = Scrape(min_interval_s=0.2, max_interval_s=5.0)
    async with Engine() as engine:
        one = scraper(session, engine.url, config)
        engine.metrics = vllm_text(running=1)
        await one.once()
        assert 0.18 <= one.delay_s() <= 0.22
        engine.metrics = vllm_text()
        await one.once()
        delays = [one.delay_s() for _ in range(8)]
        assert delays[0] < 0.45
        assert 4.5 <= delays[-1] <= 5.5
        ticket = one.pool.ledger.open(one.replica.slot, 10, 10, 0.0)  # our own work counts
        assert one.delay_s() <= 0.22
        one.pool.ledger.close(ticket, 1.0)
        one.pace.replicas = 1000  # a large fleet: bounded share of a core
        assert one.delay_s() >= 4.5


async def test_an_engine_spends_no_more_than_its_share_on_scrapes(
    session: aiohttp.ClientSession,
) -> None:
    """While it writes its metrics it passes no token on. Its quickest answer of late counts."""
    async with Engine() as engine:
        engine.metrics = vllm_text(running=1)
        one = scraper(session, engine.url, Scrape(min_interval_s=0.2, max_interval_s=5.0))
        now = 0.0

        async def delay_s(answer_s: float) -> float:
            """The delay after a scrape that took so long, with a clock that is read three times."""

            def clock() -> float:
                nonlocal now
                now += answer_s / 2
                return now

            one.clock = clock
            assert await one.once()
            return one.delay_s()

        assert 0.9 <= await delay_s(0.010) <= 1.1
        assert 0.9 <= await delay_s(0.030) <= 1.1  # that one waited for others
        assert 0.72 <= await delay_s(0.008) <= 0.88
        assert 0.18 <= await delay_s(0.001) <= 0.22
        for _ in range(8):
            longest = await delay_s(0.5)  # overloaded, or far away
        assert 4.5 <= longest <= 5.5


async def test_run_scrapes_until_it_is_cancelled(session: aiohttp.ClientSession) -> None:
    async with Engine() as engine:
        config = Scrape(min_interval_s=0.01, max_interval_s=0.01)
        one = scraper(session, engine.url, config)
        task = asyncio.create_task(one.run())
        await until(lambda: engine.seen.get("/metrics", 0) >= 3)
        assert one.pace.replicas == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert one.pace.replicas == 0
