"""The running router without a face: feeds, maintenance, readiness, reload."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest

from tests.common import until
from tests.router.feeds.engine import Engine
from warmlane.router.build import build, restart_needed
from warmlane.router.config import (
    Admin,
    Config,
    Index,
    Limits,
    Listen,
    PoolConfig,
    Probe,
    Scrape,
    Timeouts,
)
from warmlane.router.config_admission import Admission
from warmlane.router.config_load import from_data
from warmlane.router.errors import ConfigError
from warmlane.router.types import Kind, Outcome, ReplicaSpec, ReplicaState, Request

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
            followed: list[Config] = []
            running.followers.append(followed.append)
            assert running.reload(new) == ["listen"]
            await until(lambda: [replica.spec.url for replica in pool] == [two.url])
            assert running.config.pools[0].policy == "round-robin"
            assert running.router.lanes["default"].decider.parts.picker_name == "round_robin"
            assert running.config.zone == "b"
            assert running.config.listen == Listen()
            assert followed == [running.config]
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
    live = msgspec.structs.replace(live, admission=Admission(enabled=True))
    assert restart_needed(config, live) == []
    other = msgspec.structs.replace(
        config,
        admin=Admin(port=1),
        index=Index(block_bytes=64),
        limits=Limits(replicas=7, tickets=8, connections=9),
        pools=[PoolConfig(name="b", tokenizer="engine")],
        timeouts=Timeouts(drain_s=1, idle_s=7, upstream_keepalive_s=1),
    )
    assert restart_needed(config, other) == [
        *("admin", "index", "limits.replicas", "limits.tickets", "pools[b].tokenizer"),
        "timeouts.upstream_keepalive_s",
    ]
    come = msgspec.structs.replace(config, pools=[PoolConfig(name="b")])
    assert restart_needed(config, come) == []


async def test_admission_follows_a_reload_and_who_waits_goes() -> None:
    specs = [ReplicaSpec(url="http://127.0.0.9:9")]
    config = Config(pools=[PoolConfig(replicas=specs, models=["m"])])
    running = await build(config)
    request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"x" * 9000)
    try:
        waiting = Admission(enabled=True, room_s=60.0)
        assert running.reload(msgspec.structs.replace(config, admission=waiting)) == []
        gate = running.router.lanes["default"].gate
        assert gate is not None
        waits = asyncio.ensure_future(running.decide(request, 1))  # nobody is ready
        while not gate.queue:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)
        running.router.pools["default"].set_state(0, ReplicaState.READY)
        later = msgspec.structs.replace(waiting, backlog_s=2.0, wait_s=60.0)
        assert running.reload(msgspec.structs.replace(config, admission=later)) == []
        decision = await waits
        running.router.close(decision.ticket, Outcome(), 1e9)
        assert running.config.admission == later and not gate.queue
    finally:
        await running.close()


async def test_pools_come_and_go_with_their_feeds(caplog: pytest.LogCaptureFixture) -> None:
    """A request under way holds its replica until it ends, or drain_s is over."""
    caplog.set_level(logging.INFO)
    async with Engine() as one, Engine() as two:
        two.models = {"data": [{"id": "b"}]}
        alone = config_of(one)
        extra = PoolConfig(name="b", models=["b"], replicas=[ReplicaSpec(url=two.url)])
        both = msgspec.structs.replace(alone, pools=[alone.pools[0], extra])
        running = await build(alone)
        try:
            assert running.reload(both) == []
            await until(lambda: sum(running.router.pools["b"].ready) == 1)
            request = Request(kind=Kind.COMPLETIONS, model="b", prompt=PROMPT)
            decision = running.router.decide(request, monotonic(), 1)
            running.router.sent(decision.ticket, 0, monotonic())
            gone = running.router.pools["b"]
            assert running.reload(alone) == []
            assert "b" not in running.feeds.membership
            await asyncio.sleep(0.3)
            assert [replica.state for replica in gone] == [ReplicaState.DRAINING]
            # the same name again while the old one is still draining
            assert running.reload(both) == []
            again = running.router.pools["b"]
            assert again is not gone
            await until(lambda: sum(again.ready) == 1)
            assert running.router.close(decision.ticket, Outcome(), monotonic())
            await until(lambda: not list(gone))
            assert ("b", f"127.0.0.1:{two.port}") in running.feeds.probers
            assert sum(again.ready) == 1
            assert running.reload(alone) == []
            await until(lambda: not list(again))
            feed = f"127.0.0.1:{two.port}"
            await until(lambda: not any(feed in each.get_name() for each in asyncio.all_tasks()))
            assert "event=pool_removed pool=b inflight=1" in caplog.text
            assert 'pool="b",replica=' not in running.metrics.render().decode()
        finally:
            await running.close()


async def test_what_the_probe_took_out_comes_back_after_a_reload() -> None:
    async with Engine() as one, Engine() as two:
        config = config_of(one, two)
        running = await build(config)
        try:
            pool = running.router.pools["default"]
            await until(lambda: sum(pool.ready) == 2)
            one.health = 500
            await until(lambda: sum(pool.ready) == 1)
            scraper = running.feeds.scrapers["default", f"127.0.0.1:{two.port}"]
            running.reload(msgspec.structs.replace(config, zone="b"))
            assert running.feeds.scrapers["default", f"127.0.0.1:{two.port}"] is scraper
            faster = msgspec.structs.replace(config.probe, interval_s=0.04)
            running.reload(msgspec.structs.replace(config, probe=faster))
            assert running.feeds.scrapers["default", f"127.0.0.1:{two.port}"] is not scraper
            one.health = 200
            await until(lambda: sum(pool.ready) == 2)
        finally:
            await running.close()


async def test_a_failed_build_leaves_nothing_running(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    config = replaced(Config(), engine_api_key_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="engine_api_key_file"):
        await build(config)
    assert asyncio.all_tasks() == before


async def test_a_program_waits_for_its_decision_past_saturation() -> None:
    """`Running.decide`: it waits for room, and whoever is cancelled leaves the queue."""
    pool = {"replicas": ["http://127.0.0.1:9"], "models": ["m"]}
    settings = {"enabled": True, "backlog_s": 0.001, "unstarted": 1, "room_s": 5.0}
    probe = {"interval_s": 3600.0}
    config = from_data({"pools": [pool], "admission": settings, "probe": probe})
    running = await build(config)
    try:
        router, gate = running.router, running.router.lanes["default"].gate
        assert gate is not None and gate.active
        request = Request(kind=Kind.COMPLETIONS, model="m", prompt=b"x" * 4000)
        asked = [asyncio.create_task(running.decide(request, number)) for number in range(3)]
        await asyncio.sleep(0)
        assert len(gate.queue) == 3
        router.pools["default"].set_state(0, ReplicaState.READY, "a test says so")
        done, _ = await asyncio.wait(asked, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.05)
        waits = [task for task in asked if not task.done()]
        assert done and len(waits) == len(gate.queue) == 1
        waits[0].cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert not gate.queue
        for task in asked:
            if not task.cancelled():
                router.close(task.result().ticket, Outcome(), 0.0)
        assert router.open_tickets == 0
    finally:
        await running.close()
