"""From the command line to replicas: flags, config checks, a running router, health, reload."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.common import until
from tests.kube_api.objects import inference_pool, objective, pod, rewrite, rule
from tests.kube_api.server import LEASES, OBJECTIVES, PODS, POOLS, REWRITES, KubeServer, kubeconfig
from tests.router.feeds.engine import Engine
from warmlane.envoy.health import Serving
from warmlane.envoy.server import start_server
from warmlane.router import ext_proc, serve
from warmlane.router.build import build
from warmlane.router.config import Config
from warmlane.router.config_load import from_data
from warmlane.router.errors import ConfigError
from warmlane.router.types import Kind, Request


def tree(path: Path, port: int = 8000, **more: Any) -> dict[str, Any]:
    kubernetes = {"pool": "llm", "kubeconfig": str(path)}
    return {
        "pools": [{"name": "llm", "discovery": {"kubernetes": kubernetes}}],
        "probe": {"interval_s": 0.05},
        **more,
    }


def parsed(module: Any, *words: str) -> Config:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    found: Config = module.config_from(parser.parse_args(words))
    return found


@pytest.mark.parametrize("module", [serve, ext_proc])
def test_the_flags_name_an_inference_pool(module: Any) -> None:
    words = ("--pool-name", "qwen", "--pool-namespace", "models", "--kubeconfig", "~/.kube/config")
    (pool,) = parsed(module, *words).pools
    found = pool.discovery.kubernetes
    assert found is not None and pool.name == "qwen"
    assert (found.pool, found.namespace, found.kubeconfig) == ("qwen", "models", "~/.kube/config")
    with pytest.raises(ConfigError, match="--pool-name"):
        parsed(module)


def test_a_pool_name_beside_replicas_only_names_the_picker() -> None:
    (pool,) = parsed(ext_proc, "--pool-name", "qwen", "--replica", "http://10.0.0.1:80").pools
    assert pool.name == "qwen" and pool.discovery.kubernetes is None


@pytest.mark.parametrize(
    ("kubernetes", "why"),
    [
        ({}, "nothing: set exactly one of"),
        ({"pool": "a", "slices": "b"}, "pool, slices: set exactly one of"),
        ({"selector": "a=b"}, "needs the ports"),
        ({"pool": "a", "ports": [1]}, "tells its own"),
        ({"selector": "a=b", "ports": [1, 1]}, "named twice"),
        ({"selector": "a=b", "ports": [0]}, "ports"),
        ({"selector": "a=b", "ports": list(range(1, 10))}, "ports"),
    ],
)
def test_a_bad_section_is_refused(kubernetes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        from_data({"pools": [{"discovery": {"kubernetes": kubernetes}}]})


def test_times_that_let_two_lead_are_refused() -> None:
    with pytest.raises(ConfigError, match="each must be below the next"):
        from_data({"leader": {"lease": "x", "renew_s": 15.0}})
    from_data({"leader": {"renew_s": 15.0}})  # no election: nothing to refuse


async def test_outside_a_cluster_the_start_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=r"pools\[default\]\.discovery\.kubernetes.*kubeconfig"):
        await build(from_data({"pools": [{"discovery": {"kubernetes": {"pool": "x"}}}]}))


async def test_a_running_router_follows_the_cluster(tmp_path: Path) -> None:
    async with KubeServer() as server, Engine() as engine:
        path = tmp_path / "kubeconfig"
        path.write_text(kubeconfig(server))
        running = await build(from_data(tree(path)))
        try:
            assert running.standby and running.why_not_ready() == "no replica is ready"
            server.store.put(POOLS, inference_pool("llm", engine.port, app="llm"))
            server.store.put(PODS, pod("a", "127.0.0.1"))
            server.store.put(OBJECTIVES, objective("gold", "llm", 7))
            server.store.put(REWRITES, rewrite("r", "llm", rule(("tiny", 1), models=("alias",))))
            await until(lambda: running.why_not_ready() == "")
            assert not running.standby
            asked = Request(kind=Kind.CHAT, model="alias", objective="gold")
            await until(lambda: "alias" in [each["id"] for each in running.router.models()])
            await until(lambda: running.router.prepare(asked).request.priority == -7)
            decision = running.router.decide(asked, 0.0, 1)
            assert decision.model == "tiny"
            await reload_away(running, server, engine)
        finally:
            await running.close()
        await until(lambda: server.watching == [])


async def reload_away(running: Any, server: KubeServer, engine: Engine) -> None:
    """A reload without the section takes replicas and rewrites away; with it they are back."""
    with_it = running.config
    static = from_data({"pools": [{"name": "llm", "replicas": ["http://127.0.0.2:9"]}]})
    running.reload(static)
    await until(lambda: server.watching == [])
    assert "alias" not in [each["id"] for each in running.router.models()]
    running.reload(with_it)
    await until(lambda: "alias" in [each["id"] for each in running.router.models()])
    await until(lambda: running.why_not_ready() == "")


async def test_a_picker_that_does_not_lead_is_not_serving(tmp_path: Path) -> None:
    async with KubeServer() as server, Engine() as engine:
        path = tmp_path / "kubeconfig"
        path.write_text(kubeconfig(server))
        server.store.put(POOLS, inference_pool("llm", engine.port, app="llm"))
        server.store.put(PODS, pod("a", "127.0.0.1"))
        leader = {"lease": "picker", "kubeconfig": str(path), "retry_s": 0.05}
        pickers = []
        try:
            for name in ("one", "two"):
                options = {"port": 0, "health_port": 0, "insecure": True, "transport": "grpcio"}
                more = {"leader": {**leader, "identity": name}, "ext_proc": options}
                running = await build(from_data(tree(path, **more)))
                pickers.append((running, await start_server(running)))
                await until(lambda: pickers[0][1].health.status("readiness") == Serving.SERVING)
            (one, _), (two, standby) = pickers
            await until(lambda: any(two.router.pools["llm"]))  # it stays warm
            await until(lambda: standby.health.status("readiness") == Serving.NOT_SERVING)
            assert two.why_not_ready() == "not the leader"
            assert standby.health.status("liveness") == Serving.SERVING
            await pickers[0][1].close()
            await one.close()  # gives the lease up
            await until(lambda: standby.health.status("readiness") == Serving.SERVING)
            spec = server.store.collections[LEASES].objects["default", "picker"]["spec"]
            assert spec["holderIdentity"] == "two"
        finally:
            for running, picker in pickers:
                await picker.close()
                await running.close()
            await asyncio.sleep(0)
