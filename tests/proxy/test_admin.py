"""The control plane over real HTTP, on a running router with real engines behind it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from tests.common import until
from tests.router.feeds.engine import Engine, vllm_text
from warmlane.router.build import Running, build
from warmlane.router.config import Admin as AdminConfig
from warmlane.router.config import Config, Limits, PoolConfig, Probe, Scrape
from warmlane.router.config_admission import Admission
from warmlane.router.errors import ConfigError
from warmlane.router.proxy.admin import Admin, guess_path, is_loopback, start_admin
from warmlane.router.proxy.admin import __doc__ as admin_docs
from warmlane.router.types import ReplicaSpec

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "secret words " * 100}]}


def config_of(*engines: Engine, **more: Any) -> Config:
    return Config(
        pools=[PoolConfig(replicas=[ReplicaSpec(url=engine.url) for engine in engines])],
        admin=more.pop("admin", AdminConfig(port=0)),
        probe=Probe(interval_s=0.05, models_interval_s=0.05),
        scrape=Scrape(min_interval_s=0.02, max_interval_s=0.05),
        **more,
    )


class Bench:
    """One engine, a running router, its admin server and a client."""

    def __init__(self, engine: Engine, running: Running, admin: Admin) -> None:
        self.engine = engine
        self.running = running
        self.admin = admin
        self.reload: Callable[[], list[str]] = list
        self.session = aiohttp.ClientSession(f"http://127.0.0.1:{admin.port}")

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.session.request(method, path, **more) as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.text()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.engine.port}"


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Engine() as engine:
        engine.metrics = vllm_text(running=3, waiting=1, queries=100, hits=40)
        config = config_of(engine)
        running = await build(config)
        found: list[Bench] = []
        admin = await start_admin(running, config, lambda: found[0].reload())
        found.append(Bench(engine, running, admin))
        replica = running.router.pools["default"].by_name(found[0].name)
        assert replica is not None
        await until(lambda: running.why_not_ready() == "" and replica.load is not None)
        yield found[0]
        await found[0].session.close()
        await admin.close()
        await running.close()


@pytest.mark.parametrize(
    "noise", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xfe", b"\x00\xe2\x1f" * 99]
)
async def test_a_peer_that_speaks_no_http_fills_no_log(
    bench: Bench, noise: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "warmlane.admin")
    for before in (b"", b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.admin.port)
        writer.write(before + noise)
        told = await asyncio.wait_for(reader.read(), 5)
        assert b" 400 " in told
        writer.close()
    said = [each for each in caplog.records if each.name == "warmlane.admin"]
    assert said and all(each.levelname == "DEBUG" for each in said)
    assert await bench.call("GET", "/healthz") == (200, {"status": "ok"})


async def test_health_and_readiness(bench: Bench) -> None:
    assert await bench.call("GET", "/healthz") == (200, {"status": "ok"})
    assert await bench.call("GET", "/readyz") == (200, {"ready": True, "why": ""})
    bench.running.draining = True
    assert await bench.call("GET", "/readyz") == (503, {"ready": False, "why": "draining"})
    assert (await bench.call("GET", "/healthz"))[0] == 200
    bench.running.draining = False
    await bench.engine.stop()
    await until(lambda: bench.running.why_not_ready() == "no replica is ready")
    assert (await bench.call("GET", "/readyz"))[0] == 503


async def test_metrics(bench: Bench) -> None:
    status, text = await bench.call("GET", "/metrics")
    assert status == 200
    assert f'warmlane_replica_ready{{pool="default",replica="{bench.name}"}} 1.0' in text
    assert f'warmlane_replica_running_requests{{pool="default",replica="{bench.name}"}} 3.0' in text
    assert 'warmlane_index_blocks{pool="default"} 0.0' in text
    assert "warmlane_loop_lag_seconds" in text


async def test_admission_is_described(bench: Bench) -> None:
    assert await bench.call("GET", "/admin/v1/admission") == (200, {"enabled": False, "pools": []})


async def test_admission_is_described_by_pool() -> None:
    settings = Admission(enabled=True)
    async with Engine() as engine:
        running = await build(config_of(engine, admission=settings))
        admin = await start_admin(running, running.config, list)
        bench = Bench(engine, running, admin)
        try:
            status, data = await bench.call("GET", "/admin/v1/admission")
        finally:
            await bench.session.close()
            await admin.close()
            await running.close()
    assert status == 200 and data["enabled"]
    (row,) = data["pools"]
    assert (row["pool"], row["waiting"], row["tenants_waiting"]) == ("default", 0, 0)
    assert not row["holds_new_sessions"]


async def test_replicas_are_described(bench: Bench) -> None:
    status, data = await bench.call("GET", "/admin/v1/replicas")
    assert status == 200
    (row,) = data["replicas"]
    assert row["name"] == bench.name
    assert row["url"] == bench.engine.url
    assert row["state"] == "ready"
    assert row["load"]["running"] == 3
    assert row["load"]["prefix_hits"] == 40
    assert 0 <= row["load_age_s"] < 10
    assert row["models"] == ["tiny"]
    assert row["requests"] == 0
    assert (await bench.call("GET", "/admin/v1/replicas?pool=none"))[0] == 404


async def test_add_drain_undrain_remove(bench: Bench) -> None:
    pool = bench.running.router.pools["default"]
    async with Engine() as other:
        status, row = await bench.call(
            "POST", "/admin/v1/replicas", json={"url": other.url, "zone": "b", "name": "new one"}
        )
        assert (status, row["name"], row["zone"]) == (201, "new one", "b")
        await until(lambda: sum(pool.ready) == 2)
        again = await bench.call(
            "POST", "/admin/v1/replicas", json={"url": other.url, "zone": "b", "name": "new one"}
        )
        assert again[0] == 200
        status, row = await bench.call("POST", "/admin/v1/replicas/new%20one/drain")
        assert (status, row["state"]) == (200, "draining")
        status, row = await bench.call("POST", "/admin/v1/replicas/new%20one/undrain")
        assert (status, row["state"]) == (200, "ready")
        replica = pool.by_name("new one")
        assert replica is not None
        ticket = pool.ledger.open(replica.slot, 1, 1, 0.0)
        assert (await bench.call("DELETE", "/admin/v1/replicas/new%20one"))[0] == 200
        assert pool.by_name("new one") is replica  # its request is still under way
        assert (await bench.call("POST", "/admin/v1/replicas/new%20one/undrain"))[0] == 409
        pool.ledger.close(ticket, 1.0)
        await until(lambda: pool.by_name("new one") is None)
        status, error = await bench.call("DELETE", "/admin/v1/replicas/new%20one")
        assert status == 404
        assert error["error"]["message"] == "no replica 'new one'"


async def test_remove_at_once(bench: Bench) -> None:
    pool = bench.running.router.pools["default"]
    pool.ledger.open(0, 1, 1, 0.0)
    status, _ = await bench.call("DELETE", f"/admin/v1/replicas/{bench.name}?now=1")
    assert status == 200
    assert pool.by_name(bench.name) is None


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"{}", 400, "url"),
        (b'{"url": "ftp://x"}', 400, "must be http(s)"),
        (b'{"url": "http://x:1", "colour": 1}', 400, "colour"),
        (b'{"url": "http://x:1", "pool": "none"}', 404, "no pool"),
        (b'{"url": "http://x:1", "pool": 7}', 404, "no pool"),
        (b'{"url": "http://x:1", "pool": ["default"]}', 404, "no pool"),
    ],
)
async def test_bad_replicas_are_refused(
    bench: Bench, body: bytes, status: int, message: str
) -> None:
    got, data = await bench.call("POST", "/admin/v1/replicas", data=body)
    assert got == status
    assert message in data["error"]["message"]


async def test_explain_says_why_and_keeps_the_prompt_to_itself(bench: Bench) -> None:
    status, data = await bench.call("POST", "/admin/v1/explain", json=CHAT)
    assert status == 200
    assert data["pool"] == "default"
    assert data["prompt_blocks"] > 5
    (row,) = data["replicas"]
    assert (row["replica"], row["order"]) == (bench.name, 0)
    assert "secret" not in str(data)
    assert bench.running.router.open_tickets == 0
    other = await bench.call(
        "POST",
        "/admin/v1/explain?path=/v1/completions",
        json={"model": "tiny", "prompt": "x" * 500},
    )
    assert other[0] == 200


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [
        ("", b"not json", 400),
        ("", b'{"model": "tiny"}', 400),
        ("?path=/v1/chat/completions", b"[1]", 400),
        ("", b'{"model": "unknown model", "prompt": "x"}', 404),
    ],
)
async def test_explain_refuses_clearly(bench: Bench, query: str, body: bytes, status: int) -> None:
    got, data = await bench.call("POST", f"/admin/v1/explain{query}", data=body)
    assert got == status
    assert data["error"]["message"]


async def test_explain_without_a_replica_tells_who_was_removed(bench: Bench) -> None:
    bench.running.router.pools["default"].drain(bench.name)
    status, data = await bench.call("POST", "/admin/v1/explain", json=CHAT)
    assert status == 200
    assert data["error"]
    assert data["removed"]["ready"] == 1


async def test_config_is_shown_whole(bench: Bench) -> None:
    status, data = await bench.call("GET", "/admin/v1/config")
    assert status == 200
    assert msgspec.convert(data, Config) == bench.running.config


async def test_reload(bench: Bench) -> None:
    bench.reload = lambda: ["listen"]
    answer = await bench.call("POST", "/admin/v1/reload")
    assert answer == (200, {"reloaded": True, "restart_needed": ["listen"]})

    def refuse() -> list[str]:
        raise ConfigError("pools[0].nam: unknown field")

    bench.reload = refuse
    status, data = await bench.call("POST", "/admin/v1/reload")
    assert (status, data["error"]["message"]) == (400, "pools[0].nam: unknown field")


async def test_a_bug_is_a_clear_500(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def bug() -> list[str]:
        raise ZeroDivisionError

    bench.reload = bug
    status, data = await bench.call("POST", "/admin/v1/reload")
    assert (status, data["error"]["type"]) == (500, "internal_error")
    assert "event=admin_bug path=/admin/v1/reload" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("PUT", "/metrics", 405), ("GET", "/admin/v1/explain", 405)],
)
async def test_unknown_paths_and_methods(bench: Bench, method: str, path: str, status: int) -> None:
    got, data = await bench.call(method, path)
    assert got == status
    assert data["error"]["code"] == status


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Origin": "http://127.0.0.1"}, {"Host": ""}]
)
async def test_web_pages_are_refused(bench: Bench, headers: dict[str, str]) -> None:
    for path in ("/admin/v1/config", "/metrics"):
        status, _ = await bench.call("GET", path, headers=headers)
        assert status == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.2:80", "[::1]", "[::1]:9"])
async def test_local_names_are_served(bench: Bench, host: str) -> None:
    assert (await bench.call("GET", "/healthz", headers={"Host": host}))[0] == 200


async def test_a_token_guards_admin_and_nothing_else(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    async with Engine() as engine:
        config = config_of(engine, admin=AdminConfig(port=0, token_file=str(token)))
        running = await build(config)
        admin = await start_admin(running, config, list)
        bench = Bench(engine, running, admin)
        try:
            for path in ("/metrics", "/healthz"):
                status, _ = await bench.call("GET", path, headers={"Host": "router.example"})
                assert status == 200
            bad = ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic s3cret"})
            for headers in bad:
                status, _ = await bench.call("GET", "/admin/v1/config", headers=headers)
                assert status == 401
            good = {"Authorization": "Bearer s3cret", "Origin": "http://x"}
            assert (await bench.call("GET", "/admin/v1/config", headers=good))[0] == 200
        finally:
            await bench.session.close()
            await admin.close()
            await running.close()


async def test_a_large_body_is_refused() -> None:
    async with Engine() as engine:
        config = config_of(engine, limits=Limits(body_bytes=1000))
        running = await build(config)
        admin = await start_admin(running, config, list)
        bench = Bench(engine, running, admin)
        try:
            status, data = await bench.call("POST", "/admin/v1/explain", data=b"x" * 2000)
            assert status == 413
            assert data["error"]["message"]
        finally:
            await bench.session.close()
            await admin.close()
            await running.close()


async def test_an_open_address_needs_a_token() -> None:
    async with Engine() as engine:
        config = config_of(engine, admin=AdminConfig(host="0.0.0.0", port=0))
        running = await build(config)
        try:
            with pytest.raises(ConfigError, match=r"admin\.host"):
                await start_admin(running, config, list)
        finally:
            await running.close()


async def test_an_open_address_may_tell_metrics_alone() -> None:
    """What Prometheus in a cluster needs, and nothing that changes or tells more."""
    async with Engine() as engine:
        options = AdminConfig(host="0.0.0.0", port=0, metrics_only=True)
        config = config_of(engine, admin=options)
        running = await build(config)
        admin = await start_admin(running, config, list)
        bench = Bench(engine, running, admin)
        try:
            for path in ("/metrics", "/healthz", "/readyz"):
                status, _ = await bench.call("GET", path, headers={"Host": "10.0.0.7:9090"})
                assert status in (200, 503)
            for path in ("/admin/v1/config", "/admin/v1/replicas"):
                assert (await bench.call("GET", path))[0] == 403
        finally:
            await bench.session.close()
            await admin.close()
            await running.close()


def test_which_hosts_are_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(
        map(is_loopback, ("", "0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.x"))
    )


def test_the_path_is_told_from_the_body() -> None:
    assert guess_path(b'{"messages": []}') == "/v1/chat/completions"
    assert guess_path(b'{"prompt": ""}') == "/v1/completions"
    assert guess_path(b'{"input": ""}') == "/v1/responses"


async def test_the_docs_name_every_route(bench: Bench) -> None:
    text = (Path(__file__).parents[2] / "docs" / "admin.md").read_text()
    assert bench.admin._runner is not None
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in bench.admin._runner.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    told = set(re.findall(r"^\| `([A-Z]+ /\S+)` \|", text, re.M))
    assert told == routes
    in_module = set(re.findall(r"^    ([A-Z]+) +(/\S+)", admin_docs or "", re.M))
    assert {f"{method} {path}" for method, path in in_module} == routes
