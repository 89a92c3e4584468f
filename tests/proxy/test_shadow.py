"""The proxy while somebody else's choice counts: requests go by the baseline, and are compared."""

from __future__ import annotations

from warmlane.router.config_envoy import ShadowConfig
from warmlane.router.shadow import Shadow

from .engine import GOOD, Engine, says_then_closes
from .rig import Rig, rig

DEFAULT = {"policy": "default"}
LONG = [{"role": "user", "content": "the same long beginning of every turn " * 100}]


def watch(running: Rig) -> Shadow:
    shadow = Shadow(running.router, ShadowConfig(mode="shadow", baseline="round-robin"))
    running.proxy.state.shadow = shadow
    return shadow


async def test_requests_go_by_the_baseline_and_are_compared() -> None:
    async with rig(GOOD, GOOD, pool=DEFAULT) as running:
        shadow = watch(running)
        for _ in range(6):
            assert (await running.chat(messages=LONG)).status == 200
        assert [len(engine.seen) for engine in running.engines] == [3, 3]
        (row,) = shadow.report().values()
        assert row["decisions"] == 6 and row["unknown"] == 0
        assert row["our_hit_tokens"] >= row["their_hit_tokens"] > 0
        # Then all of it, at once, without a restart.
        shadow.switch("active", 1.0)
        for _ in range(4):
            assert (await running.chat(messages=LONG)).status == 200
        assert sorted(len(engine.seen) for engine in running.engines) == [3, 7]


async def test_a_failed_first_choice_still_moves_on() -> None:
    bad = Engine(*[says_then_closes() for _ in range(4)], GOOD)
    async with rig(bad, GOOD, pool=DEFAULT) as running:
        watch(running)
        for _ in range(4):
            assert (await running.chat()).status == 200
        assert running.count("retries_total") >= 1


async def test_the_switch_back_to_least_in_flight() -> None:
    async with rig(GOOD, GOOD, pool=DEFAULT) as running:
        shadow = watch(running)
        shadow.switch("least-requests")
        for _ in range(6):
            assert (await running.chat(messages=LONG)).status == 200
        assert all(engine.seen for engine in running.engines)
