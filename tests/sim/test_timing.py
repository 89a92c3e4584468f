"""The presets of the engine model against known rates; `make bench` holds it to real runs."""

from __future__ import annotations

import pytest

from warmlane.router.sim.timing import PRESETS

# Prompt tokens a second at a chunk of 8,192 and inter-token times at 32 sequences of 2,048 tokens,
# computed from the same kernel tables (tokens/s, seconds).
KNOWN = {
    "llama-3.1-8b/h100": (42_800, 0.0118),
    "llama-3.1-8b/h200": (42_700, 0.0096),
    "llama-3.1-8b/a100": (15_200, 0.0189),
    "qwen3-32b/2xh100": (17_000, 0.0192),
    "qwen3-32b/4xh100": (26_500, 0.0124),
    "qwen3-32b/h200": (10_100, 0.0242),
    "qwen3-32b/2xh200": (16_900, 0.0153),
    "qwen3-32b/2xa100": (6_400, 0.0318),
    "llama-3.1-70b/4xh100": (13_200, 0.0201),
    "llama-3.1-70b/8xh100": (20_100, 0.0132),
    "llama-3.1-70b/4xh200": (13_200, 0.0162),
    "llama-3.1-70b/4xa100": (5_400, 0.0330),
}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_give_the_known_rates(name: str) -> None:
    timing, (rate, token_s) = PRESETS[name], KNOWN[name]
    chunk = timing.step_s(8192, 8192 * 4096, 0, 0, 1)
    assert 8192 / chunk == pytest.approx(rate, rel=0.06)
    assert timing.step_s(0, 0, 32, 32 * 2048, 32) == pytest.approx(token_s, rel=0.06)
