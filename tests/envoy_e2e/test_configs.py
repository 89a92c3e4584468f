"""Every Envoy config of `deploy/`: Envoy takes it, and without a picker it does what it says."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from . import config
from .backend import Backend
from .client import Ask, Http1, Http2
from .envoy_process import Envoy
from .install import envoy_binary
from .stage import BUILT, NATIVE

CONFIGS = sorted(path.name for path in config.DEPLOY.glob("*.yaml"))
NOBODY = 1  # a port of nobody's


def test_there_are_configs() -> None:
    assert {config.ORIGINAL_DST, config.OVERRIDE_HOST} <= set(CONFIGS)


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(envoy_binary()), "--mode", "validate", "-l", "warning", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", CONFIGS)
def test_envoy_takes_it(name: str) -> None:
    done = validate(config.DEPLOY / name)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_envoy_would_refuse_a_wrong_one(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    text = (config.DEPLOY / config.ORIGINAL_DST).read_text()
    path.write_text(text.replace("FULL_DUPLEX_STREAMED", "HALF_DUPLEX"))
    assert validate(path).returncode != 0


async def test_fails_closed_without_a_picker(tmp_path: Path) -> None:
    tree = config.load(config.ORIGINAL_DST)
    config.picker_at(tree, NOBODY, tls=False)
    backend = Backend()
    await backend.start()
    envoy = Envoy(tree, tmp_path)
    await envoy.start()
    try:
        for connect in (Http1.connect, Http2.connect):
            client = await connect(envoy.ports["inference"])
            # not even a client that names a replica gets there
            sneaky = {"x-gateway-destination-endpoint": backend.endpoint}
            answer = await client.ask(Ask(b"{}", headers=sneaky))
            assert answer.status == 500
            client.close()
        assert backend.seen == []
    finally:
        await envoy.stop()
        await backend.stop()


@pytest.mark.parametrize("mode", config.BODY_MODES)
async def test_fails_open_without_a_picker(mode: str, tmp_path: Path) -> None:
    """Envoy balances by itself, whatever the body mode, once it knows that the picker is gone."""
    tree = config.load(config.OVERRIDE_HOST)
    config.picker_at(tree, NOBODY, tls=False)
    config.set_modes(config.listener(tree), request_body_mode=mode)
    backends = [Backend(), Backend()]
    for backend in backends:
        await backend.start()
    config.replicas_at(tree, [backend.port for backend in backends])
    envoy = Envoy(tree, tmp_path)
    await envoy.start()
    try:
        client = await Http1.connect(envoy.ports["inference"])
        only = {"x-gateway-destination-endpoint": backends[0].endpoint}
        answers = [await client.ask(Ask(b"x" * 100_000, headers=only)) for _ in range(16)]
        assert [answer.status for answer in answers] == [200] * 16
        # both served: the client's own header chose nothing
        assert all(backend.seen for backend in backends)
        client.close()
    finally:
        await envoy.stop()
        await asyncio.gather(*(backend.stop() for backend in backends))


def test_both_transports_run_here() -> None:
    """What the other files of this folder run on; a build without the native one says so."""
    if not NATIVE:
        pytest.skip("NATIVE TRANSPORT NOT TESTED: warmlane._core.h2 is not built here")
    assert BUILT == ("grpcio", "native")
