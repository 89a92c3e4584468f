"""All feeds of a router together, against real HTTP servers on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import msgspec
import pytest

from tests.common import until
from tests.router.feeds.engine import Engine, vllm_text
from warmlane.router.config import Config, Discovery, PoolConfig, Probe, Scrape, Timeouts
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.feeds import Feeds, _forever
from warmlane.router.metrics import Metrics
from warmlane.router.pool import Pool
from warmlane.router.types import ReplicaSpec, ReplicaState


def config_of(*engines: Engine, **pool: object) -> Config:
    return Config(
        pools=[
            PoolConfig(
                replicas=[ReplicaSpec(url=engine.url) for engine in engines],
                **pool,  # type: ignore[arg-type]
            )
        ],
        probe=Probe(interval_s=0.05, timeout_s=1.0, failures=2, models_interval_s=0.05),
        scrape=Scrape(min_interval_s=0.02, max_interval_s=0.05, timeout_s=1.0),
        timeouts=Timeouts(drain_s=5.0),
    )


def feeds_of(config: Config) -> tuple[Feeds, Pool]:
    pool = Pool(config.pools[0], initial=ReplicaState.JOINING)
    return Feeds({pool.name: pool}, config, Metrics(), monotonic), pool


def ready(pool: Pool) -> set[str]:
    return {replica.name for replica in pool if replica.state is ReplicaState.READY}


def name(engine: Engine) -> str:
    return f"127.0.0.1:{engine.port}"


async def test_from_nothing_to_ready_to_dead_and_back() -> None:
    async with Engine() as one, Engine() as two:
        two.metrics = vllm_text(running=2)
        feeds, pool = feeds_of(config_of(one, two))
        await feeds.start()
        try:
            await until(lambda: ready(pool) == {name(one), name(two)})
            replica = pool.by_name(name(two))
            assert replica is not None
            await until(lambda: replica.load is not None and replica.load.running == 2)
            assert replica.models is not None
            assert replica.models.models == {"tiny"}
            await two.stop()
            await until(lambda: ready(pool) == {name(one)})
            assert replica.state is ReplicaState.EJECTED
            await two.start()
            await until(lambda: ready(pool) == {name(one), name(two)})
        finally:
            await feeds.close()
    tasks = {task.get_name() for task in asyncio.all_tasks()}
    assert not {task for task in tasks if task.startswith(("probe", "scrape", "discovery"))}


async def test_replicas_of_a_file_come_and_go(tmp_path: Path) -> None:
    async with Engine() as one, Engine() as two:
        path = tmp_path / "replicas.yaml"
        path.write_text(f"- {one.url}\n")
        config = config_of(discovery=Discovery(file=str(path), interval_s=0.02))
        feeds, pool = feeds_of(config)
        await feeds.start()
        try:
            await until(lambda: ready(pool) == {name(one)})
            path.write_text(f"- {two.url}\n")
            await until(lambda: {replica.name for replica in pool} == {name(two)})
            await until(lambda: ready(pool) == {name(two)})
            assert list(feeds.probers) == [("default", name(two))]
            path.write_text("this is no list\n")
            seen = two.seen["/health"]
            await until(lambda: two.seen["/health"] > seen + 3)
            assert ready(pool) == {name(two)}
        finally:
            await feeds.close()


async def test_reload_follows_replicas_keys_and_discovery(tmp_path: Path) -> None:
    async with Engine() as one, Engine() as two:
        two.key = "sk-engine"
        config = config_of(one)
        feeds, pool = feeds_of(config)
        await feeds.start()
        try:
            await until(lambda: ready(pool) == {name(one)})
            key = tmp_path / "key"
            key.write_text("# the engines' key\nsk-engine\n")
            pools = [
                msgspec.structs.replace(
                    config.pools[0],
                    replicas=[ReplicaSpec(url=two.url)],
                    engine_api_key_file=str(key),
                )
            ]
            feeds.reload(msgspec.structs.replace(config, pools=pools))
            await until(lambda: ready(pool) == {name(two)})
            replica = pool.by_name(name(two))
            assert replica is not None
            await until(lambda: replica.models is not None and bool(replica.models.models))
            bad = [msgspec.structs.replace(pools[0], engine_api_key_file=str(tmp_path / "no"))]
            with pytest.raises(ConfigError, match="engine_api_key_file"):
                feeds.reload(msgspec.structs.replace(config, pools=bad))
            assert ready(pool) == {name(two)}
        finally:
            await feeds.close()


async def test_a_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine() as one:
        one.key = "sk-env"
        monkeypatch.setenv("ENGINE_KEY_OF_TEST", "sk-env")
        feeds, pool = feeds_of(config_of(one, engine_api_key_env="ENGINE_KEY_OF_TEST"))
        await feeds.start()
        try:
            replica = pool.by_name(name(one))
            assert replica is not None
            await until(lambda: replica.models is not None and bool(replica.models.models))
        finally:
            await feeds.close()


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nbreak"])
async def test_a_bad_key_stops_the_start(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY_OF_TEST", key)
    feeds, _ = feeds_of(config_of(engine_api_key_env="ENGINE_KEY_OF_TEST"))
    with pytest.raises(ConfigError, match="ENGINE_KEY_OF_TEST") as caught:
        await feeds.start()
    if key:
        assert key not in str(caught.value)


async def test_a_feed_that_dies_of_a_bug_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("warmlane.router.feeds.feeds._RESTART_S", 0.0)
    runs = 0

    async def job() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ZeroDivisionError
        await asyncio.Event().wait()

    task = asyncio.create_task(_forever("it", job))
    await until(lambda: runs == 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [record.getMessage() for record in caplog.records] == ['event=feed_bug feed="it"'] * 2
