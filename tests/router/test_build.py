"""The running router without a face: feeds, maintenance, readiness, reload."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

from tests.router.feeds.engine import Engine, until
from warmlane.router.build import build, restart_needed
from warmlane.router.config import Config, Listen, PoolConfig, Probe, Scrape, Timeouts
from warmlane.router.errors import ConfigError
from warmlane.router.types import Kind, Outcome, ReplicaSpec, Request

PROMPT = b"a prompt that is long enough for several blocks of text " * 40


def config_of(*engines: Engine, **more: Any) -> Config:
    return Config(
        pools=[PoolConfig(replicas=[ReplicaSpec(url=engine.url) for engine in engines])],
        probe=Probe(interval_s=0.05, models_interval_s=0.05),
        scrape=Scrape(min_interval_s=0.02, max_interval_s=0.05),
        **more,
    )


def replaced(config: Config, **pool: Any) -> Config:
    pools = [msgspec.structs.replace(config.pools[0], **pool)]
    return msgspec.structs.replace(config, pools=pools)


async def test_it_becomes_ready_decides_and_ends_clean() -> None:
    before = asyncio.all_tasks()
    async with Engine() as one, Engine() as two:
        running = await build(config_of(one, two))
        try:
            assert running.why_not_ready() == "no replica is ready"
            pool = running.router.pools["default"]
            await until(lambda: sum(pool.ready) == 2)
            assert running.why_not_ready() == ""
            request = Request(kind=Kind.COMPLETIONS, model="tiny", prompt=PROMPT)
            decision = running.router.decide(request, monotonic(), 1)
            running.router.sent(decision.ticket, decision.choices[0], monotonic())
            running.router.close(decision.ticket, Outcome(), monotonic())
            again = running.router.decide(request, monotonic(), 2)
            assert again.choices[0] == decision.choices[0]
            assert again.hit_tokens[0] > 0
            running.router.close(again.ticket, Outcome(), monotonic())
            text = running.metrics.render().decode()
            assert 'warmlane_index_blocks{pool="default"} 0.0' not in text
            assert 'warmlane_open_tickets{pool="default"} 0.0' in text
            await until(lambda: running.metrics.loop_lag_max > 0)
        finally:
            await running.close()
            await running.close()
    assert not {task.get_name() for task in asyncio.all_tasks() - before}


async def test_a_removed_replica_is_swept_and_its_slot_is_free_again() -> None:
    async with Engine() as one, Engine() as two:
        running = await build(config_of(one, two))
        try:
            pool = running.router.pools["default"]
            await until(lambda: sum(pool.ready) == 2)
            request = Request(kind=Kind.COMPLETIONS, model="tiny", prompt=PROMPT)
            decision = running.router.decide(request, monotonic(), 1)
            slot = decision.choices[0]
            running.router.sent(decision.ticket, slot, monotonic())
            running.router.close(decision.ticket, Outcome(), monotonic())
            replica = pool.replicas[slot]
            assert replica is not None
            pool.remove(replica.name, monotonic())
            await until(lambda: pool.replicas[slot] is None)
        finally:
            await running.close()


async def test_a_bug_in_maintenance_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = await build(Config())
    try:
        calls = 0

        def maintain(now: float, budget_us: int) -> bool:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise ZeroDivisionError
            return True

        monkeypatch.setattr(running.router, "maintain", maintain)
        await until(lambda: calls >= 3)
        assert caplog.text.count("event=maintenance_bug") == 1
    finally:
        await running.close()


async def test_reload_changes_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    async with Engine() as one, Engine() as two:
        config = config_of(one)
        running = await build(config)
        try:
            pool = running.router.pools["default"]
            await until(lambda: running.why_not_ready() == "")
            new = replaced(config, replicas=[ReplicaSpec(url=two.url)], policy="round-robin")
            new = msgspec.structs.replace(new, listen=Listen(port=1), zone="b")
            assert running.reload(new) == ["listen", "pools[default].policy", "zone"]
            await until(lambda: [replica.spec.url for replica in pool] == [two.url])
            assert running.config.pools[0].policy == "default"
            assert running.config.zone == ""
            bad = replaced(config, engine_api_key_file=str(tmp_path / "none"))
            with pytest.raises(ConfigError):
                running.reload(bad)
            assert [replica.spec.url for replica in pool] == [two.url]
            counts = running.metrics.counts["warmlane_reloads_total"]
            assert counts == {("ok",): 1, ("failed",): 1}
        finally:
            await running.close()


def test_restart_needed_names_dotted_paths() -> None:
    config = Config()
    assert restart_needed(config, config) == []
    live = replaced(config, replicas=[ReplicaSpec(url="http://a:1")], engine_api_key_env="X")
    live = msgspec.structs.replace(live, probe=Probe(interval_s=9), timeouts=Timeouts(drain_s=1))
    assert restart_needed(config, live) == []
    other = msgspec.structs.replace(
        config, pools=[PoolConfig(name="b")], timeouts=Timeouts(drain_s=1, idle_s=7)
    )
    assert restart_needed(config, other) == ["pools[b]", "pools[default]", "timeouts.idle_s"]


async def test_a_failed_build_leaves_nothing_running(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    config = replaced(Config(), engine_api_key_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="engine_api_key_file"):
        await build(config)
    assert asyncio.all_tasks() == before
