"""The suite on `warmlane ext-proc`, a process of its own, in each transport and response level."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.epp_conformance.help import free_endpoints, results, told
from tests.kube_api.objects import inference_pool, objective, pod
from tests.kube_api.server import OBJECTIVES, PODS, POOLS, KubeServer, kubeconfig
from warmlane.envoy.conformance.target import FEATURES, Phase, Target

# Off by default (`EXTRAS`, `ADMISSION`), and not done by design: docs/conformance.md says why.
BY_OPTION = {"conditional-decode", "cost", "scores", "session-token"}
BY_ADMISSION = {"shed"}
NOT_OFFERED = {"evict", "kv-usage", "lora-affinity", "strict-paths"}
SHEDDABLE = "batch"
CONFIG = """
pools:
  - name: default
    {source}
models:
  - name: nick
    split: [{{pool: default, model: m}}, {{pool: default, model: m2}}]
scrape: {{min_interval_s: 0.1, max_interval_s: 0.3}}
probe: {{interval_s: 0.2, timeout_s: 2, failures: 1}}
"""
STATIC = "replicas: [{replicas}]"
IN_KUBERNETES = "discovery: {{kubernetes: {{pool: default, kubeconfig: {path}}}}}"
# Whoever finds no replica ready is told so at once: `state.empty` does not wait for one.
ADMISSION = """
admission: {enabled: true, room_s: 0}
"""
EXTRAS = """
ext_proc: {session_token: true, endpoint_scores: true, request_cost: true, conditional: true}
"""
# What the response level changes; the rest is tried once per transport.
SMALLER = ("request.*", "model.*", "response.*", "mode.*", "test.*", "drain.*", "stream.half*")
needs_native = pytest.mark.skipif(
    find_spec("warmlane._core.h2.session") is None, reason="the native transport is not compiled"
)


@contextlib.asynccontextmanager
async def cluster(folder: Path, endpoints: tuple[str, ...]) -> AsyncIterator[str]:
    """Kubernetes as the picker sees it: one pod with a port for each engine, and an objective of
    less than normal importance. Gives the pool's source."""
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in endpoints]
    async with KubeServer() as server:
        server.store.put(POOLS, inference_pool("default", *ports, app="llm"))
        server.store.put(PODS, pod("engines", "127.0.0.1"))
        server.store.put(OBJECTIVES, objective(SHEDDABLE, "default", -1))
        path = folder / "kubeconfig"
        path.write_text(kubeconfig(server))
        yield IN_KUBERNETES.format(path=path)


@contextlib.asynccontextmanager
async def static(endpoints: tuple[str, ...]) -> AsyncIterator[str]:
    yield STATIC.format(replicas=", ".join(f"http://{item}" for item in endpoints))


@contextlib.asynccontextmanager
async def warmlane(
    folder: Path, transport: str, level: int, *, extras: bool = False, admission: bool = False
) -> AsyncIterator[Target]:
    """A running picker and what is known about it."""
    endpoints = free_endpoints(3)
    config = folder / "warmlane.yaml"
    async with cluster(folder, endpoints) if admission else static(endpoints) as source:
        text = CONFIG.format(source=source)
        config.write_text(text + EXTRAS * extras + ADMISSION * admission)
        left_out = NOT_OFFERED | (set() if extras else BY_OPTION)
        left_out |= set() if admission else BY_ADMISSION
        async with running(config, transport, level) as (port, pid):
            phases: tuple[Phase, ...] = ("none", "headers", "full")
            yield Target(
                host="127.0.0.1",
                port=port,
                endpoints=endpoints,
                model="m",
                alias="nick",
                aliased=("m", "m2"),
                adapter="lora-a",
                sheddable=SHEDDABLE if admission else "",
                phase=phases[level],
                expect=frozenset(FEATURES) - left_out,
                settle_s=1.0,
                serve=True,
                terminate=pid,
            )


@contextlib.asynccontextmanager
async def running(config: Path, transport: str, level: int) -> AsyncIterator[tuple[int, int]]:
    """The picker as a process: its port and its id."""
    words = ["ext-proc", "--config", str(config), "--port", "0", "--health-port", "0"]
    words += ["--metrics-port", "0", "--transport", transport, "--response-level", str(level)]
    words += ["--test-headers", "--log-level", "error"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "warmlane", *words),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        port = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert port and transport in line, line
        yield int(port[1]), process.pid
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@pytest.mark.parametrize(
    ("level", "extras"), [(2, True), (1, True), (0, True), (1, False), (0, False)]
)
@pytest.mark.parametrize("transport", ["grpcio", pytest.param("native", marks=needs_native)])
async def test_the_suite_on_warmlane(
    tmp_path: Path, transport: str, level: int, extras: bool
) -> None:
    async with warmlane(tmp_path, transport, level, extras=extras) as target:
        found = await results(target, *([] if level == 2 else SMALLER))
    assert told(found, "fail") == {}
    assert len(told(found, "pass")) > 40


@pytest.mark.parametrize("transport", ["grpcio", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("level", [2, 1])
async def test_the_suite_with_admission(tmp_path: Path, transport: str, level: int) -> None:
    """Replicas and objectives come from Kubernetes; nothing else changes while there is room."""
    async with warmlane(tmp_path, transport, level, admission=True) as target:
        found = await results(target, *([] if level == 2 else ("state.*shed", "state.empty")))
    assert told(found, "fail") == {}
    assert found["state.shed"].verdict == "pass"
