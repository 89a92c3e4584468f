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
from warmlane.envoy.conformance.target import FEATURES, Phase, Target

# Off by default (`EXTRAS`), and open by design or not built: docs/conformance.md says why.
BY_OPTION = {"conditional-decode", "cost", "scores", "session-token"}
NOT_OFFERED = {
    "evict",
    "kv-usage",
    "lora-affinity",
    "shed",
    "strict-paths",
}
CONFIG = """
pools:
  - name: default
    replicas: [{replicas}]
models:
  - name: nick
    split: [{{pool: default, model: m}}, {{pool: default, model: m2}}]
scrape: {{min_interval_s: 0.1, max_interval_s: 0.3}}
probe: {{interval_s: 0.2, timeout_s: 2, failures: 1}}
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
async def warmlane(folder: Path, transport: str, level: int, extras: bool) -> AsyncIterator[Target]:
    """A running picker and what is known about it."""
    endpoints = free_endpoints(3)
    config = folder / "warmlane.yaml"
    text = CONFIG.format(replicas=", ".join(f"http://{item}" for item in endpoints))
    config.write_text(text + EXTRAS if extras else text)
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
        phases: tuple[Phase, ...] = ("none", "headers", "full")
        yield Target(
            host="127.0.0.1",
            port=int(port[1]),
            endpoints=endpoints,
            model="m",
            alias="nick",
            aliased=("m", "m2"),
            adapter="lora-a",
            phase=phases[level],
            expect=frozenset(FEATURES) - NOT_OFFERED - (set() if extras else BY_OPTION),
            settle_s=1.0,
            serve=True,
            terminate=process.pid,
        )
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
    async with warmlane(tmp_path, transport, level, extras) as target:
        found = await results(target, *([] if level == 2 else SMALLER))
    assert told(found, "fail") == {}
    assert len(told(found, "pass")) > 40
