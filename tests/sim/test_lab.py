"""The lab: a pure function of its arguments, with the real decision core and honest books."""

from __future__ import annotations

import msgspec
import pytest

from warmlane.router.config import PoolConfig
from warmlane.router.config_admission import Admission
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions, Run
from warmlane.router.sim.lab_world import Change
from warmlane.router.sim.replay_report import Slo, figures
from warmlane.router.sim.timing import PRESETS
from warmlane.router.sim.workload import generate

TIMING = PRESETS["llama-3.1-8b/h100"]
CHATS = generate("chat", 40, seed=3)


def run(policy: str, **more: object) -> Run:
    options = msgspec.structs.replace(LabOptions(rate=4.0), **more)
    return Lab(CHATS, PoolConfig(policy=policy), options).run()


def test_every_request_is_answered_once() -> None:
    found = run("default")
    assert len(found.done) + found.skipped == CHATS.requests
    assert found.failed == 0
    for done in found.done:
        assert 0 < done.ttft <= done.e2e
        assert 0 <= done.cached < done.prompt


def test_the_same_arguments_give_the_same_run() -> None:
    assert run("default") == run("default")
    assert run("default", seed=2).done != run("default").done


def test_the_cache_aware_policy_hits_more() -> None:
    assert hit(run("default")) > hit(run("round-robin")) + 0.05


@pytest.mark.parametrize("view", ["approximate", "exact"])
def test_the_router_predicts_what_the_replicas_hit(view: str) -> None:
    found = run("default", view=view)
    predicted = sum(done.predicted for done in found.done)
    assert predicted == pytest.approx(sum(done.cached for done in found.done), rel=0.05)


def test_a_slow_replica_is_slow_and_a_dead_one_loses_no_request() -> None:
    slow = run("round-robin", speeds=(1.0, 1.0, 1.0, 0.1))
    assert slow.busy_s[3] > 2 * slow.busy_s[0]
    changes = tuple(Change(at_s=at, slot=0, what="fail") for at in (1.0, 2.0, 3.0))
    failing = run("default", changes=changes)
    assert len(failing.done) + failing.skipped == CHATS.requests
    assert failing.done != run("default").done


def test_routers_that_hear_each_other_do_nearly_as_well_as_one() -> None:
    """And those that do not send what begins alike to the same replica, which keeps most hits."""

    def hit(found: Run) -> float:
        return sum(d.cached for d in found.done) / sum(d.prompt for d in found.done)

    one, shared, apart = (
        run("default", routers=m, share_s=s) for m, s in ((1, 0), (3, 0.05), (3, 0))
    )
    assert len(shared.done) == len(apart.done) == len(one.done)
    assert hit(shared) > hit(one) - 0.01
    assert hit(shared) > hit(apart) > hit(one) - 0.05
    assert run("default", routers=3, share_s=0.05) == shared


def test_a_prompt_that_no_replica_holds_ends_its_session() -> None:
    found = run("default", kv_tokens=4096)
    assert found.skipped > 0
    assert max(done.prompt + done.output for done in found.done) <= 4096


def hit(found: Run) -> float:
    return sum(done.cached for done in found.done) / sum(done.prompt for done in found.done)


@pytest.mark.parametrize("view", ["approximate", "exact"])
def test_a_tier_brings_back_what_a_small_cache_forgot(view: str) -> None:
    alone = run("default", view=view, kv_tokens=8_000)
    behind = run("default", view=view, kv_tokens=8_000, tier_tokens=400_000)
    assert alone.tier_hits == 0 < behind.tier_hits
    assert hit(behind) > hit(alone) + 0.1
    found = figures(behind, Slo())
    assert found.tier_hit_tokens == behind.tier_hits <= found.hit_tokens
    told = run("default", view=view, kv_tokens=8_000, tier_tokens=400_000, tier_told=True)
    if view == "exact":
        assert told.done == behind.done, "its events tell of the tier"
    else:
        assert sum(each.predicted for each in told.done) > sum(e.predicted for e in behind.done)


def test_late_events_know_less() -> None:
    at_once = run("default", view="exact")
    late = run("default", view="exact", view_lag_s=5.0)
    assert len(late.done) == len(at_once.done)

    def known(found: Run) -> float:
        pairs = [(done.predicted, done.cached) for done in found.done]
        return sum(min(pair) for pair in pairs) / sum(cached for _, cached in pairs)

    assert known(at_once) > 0.98 > known(late) > 0.3
    barely = run("default", view="exact", view_lag_s=1e-9)
    assert known(barely) == pytest.approx(known(at_once), abs=0.01)


def test_a_replica_joins_when_it_does() -> None:
    joins = (Change(at_s=20.0, slot=1, what="join"),)
    found = run("round-robin", changes=joins)
    there = [done.at for done in found.done if done.slot == 1]
    assert there and min(there) >= 20.0
    assert len(found.done) + found.skipped == CHATS.requests


def test_requests_to_another_zone_are_longer_under_way() -> None:
    near = run("round-robin", zones=("a",))
    far = run("round-robin", zones=("a", "b"), cross_zone_s=0.5)
    for parity, delay in ((0, 0.0), (1, 0.5)):
        one, other = (
            min(done.ttft for done in found.done if done.slot % 2 == parity)
            for found in (near, far)
        )
        assert other - one == pytest.approx(delay, abs=0.02)


def test_sessions_keep_to_the_routers_of_their_zone_and_what_leaves_it_is_told() -> None:
    blind = run("round-robin", zones=("a", "b"), routers=2)
    share = figures(blind, Slo()).in_zone
    assert share is not None and 0.4 < share < 0.6
    assert {done.away for done in blind.done} == {False, True}
    assert figures(run("default", zones=("a",), routers=2), Slo()).in_zone is None
    # What is away is later by the way there, however the queue is.
    far = run("round-robin", zones=("a", "b"), routers=2, cross_zone_s=0.5)
    assert min(done.ttft for done in far.done if done.away) > 0.5
    assert min(done.ttft for done in far.done if not done.away) < 0.1


@pytest.mark.parametrize(("profile", "sessions", "rate"), [("chat", 80, 6.0), ("agent", 80, 3.0)])
def test_at_equal_load_requests_stay_in_their_zone(
    profile: str, sessions: int, rate: float
) -> None:
    """And no later for it: the same fleet without zones costs as much."""
    made = generate(profile, sessions, seed=1)
    options = LabOptions(
        fleet=(TIMING,) * 8, rate=rate, routers=2, zones=("a", "b"), cross_zone_s=0.0
    )
    free = PoolConfig(scorers=[{"name": "price", "zone": 0}, {"name": "lora", "weight": 0.5}])
    mine, blind = (figures(Lab(made, pool, options).run(), Slo()) for pool in (PoolConfig(), free))
    assert mine.in_zone is not None and blind.in_zone is not None
    assert mine.in_zone >= 0.95
    assert blind.in_zone < 0.7
    assert mine.ttft.mean < 1.05 * blind.ttft.mean


def test_after_a_failure_a_late_view_believes_in_an_empty_cache() -> None:
    changes = tuple(Change(at_s=at, slot=slot, what="fail") for at in (5.0, 9.0) for slot in (0, 1))
    found = run("default", view="exact", view_lag_s=0.5, changes=changes)
    assert len(found.done) + found.skipped == CHATS.requests


def test_the_default_learns_which_replicas_are_slow() -> None:
    """Half the fleet at a third of its speed: the others take more, and answers come sooner."""
    slow = (1.0, 0.33, 1.0, 0.33)
    agents = generate("agent", 60, seed=4)

    def play(fields: dict[str, object]) -> Run:
        pool = PoolConfig(scorers=[{"name": "price", **fields}, {"name": "lora", "weight": 0.5}])
        return Lab(agents, pool, LabOptions(rate=30.0, speeds=slow, think_cap_s=5.0)).run()

    def ttft(found: Run) -> float:
        return sum(done.ttft for done in found.done) / len(found.done)

    learned, blind = play({}), play({"learn": False})
    assert ttft(learned) < 0.97 * ttft(blind)
    shares = [
        sum(done.prompt - done.cached for done in found.done if done.slot % 2)
        for found in (learned, blind)
    ]
    assert shares[0] < shares[1]


def test_a_replica_may_be_slow_in_decoding_alone() -> None:
    one = run("round-robin", fleet=(TIMING,), rate=0.2)
    slow = run("round-robin", fleet=(TIMING,), rate=0.2, decodes=(0.5,))
    plain, halved = figures(one, Slo(), 0.0), figures(slow, Slo(), 0.0)
    assert halved.tpot.mean > 1.8 * plain.tpot.mean
    assert halved.ttft.mean - plain.ttft.mean < halved.tpot.mean


def test_the_default_learns_who_decodes_slowly() -> None:
    """Half the fleet decodes at half speed: others write more of the answers, which end sooner."""
    agents = generate("chat", 150, seed=4)

    def play(fields: dict[str, object]) -> tuple[float, float, int]:
        pool = PoolConfig(scorers=[{"name": "price", **fields}, {"name": "lora", "weight": 0.5}])
        options = LabOptions(rate=10.0, decodes=(1.0, 0.5, 1.0, 0.5), think_cap_s=5.0)
        found = Lab(agents, pool, options).run()
        told = figures(found, Slo(), 30.0)
        written = sum(done.output for done in found.done if done.slot % 2)
        return told.e2e.mean, told.ttft.mean, written

    learned, blind = play({}), play({"tempo": 0.0})
    assert learned[0] < 0.93 * blind[0]
    assert learned[1] < 1.1 * blind[1]
    assert learned[2] < 0.8 * blind[2]


@pytest.mark.parametrize("pace", [1.0, 0.01])
def test_the_seconds_of_prefill_are_those_of_the_hardware(pace: float) -> None:
    """Whatever is configured: a hundred times slower engines are no more loaded at a hundredth."""
    options = LabOptions(rate=10.0 * pace, speeds=(pace,) * 4, think_cap_s=5.0 / pace)
    lab = Lab(generate("agent", 80, seed=4), PoolConfig(), options)
    lab.run()
    price = lab.seats[0].lane.decider.price
    assert price is not None
    true = (TIMING.token_s + TIMING.reduce_s) / pace
    assert true / 2 < price.seconds < true * 2


@pytest.mark.parametrize(("sessions", "rate"), [(30, 1.0), (120, 60.0)])
def test_admission_changes_nothing_below_saturation_and_loses_nobody_past_it(
    sessions: int, rate: float
) -> None:
    made = generate("agent", sessions, 1)
    runs = []
    for enabled in (False, True):
        settings = Admission(enabled=enabled, wait_s=2.0)
        options = LabOptions(rate=rate, kv_tokens=30_000, admission=settings, named=False)
        runs.append(Lab(made, PoolConfig(), options).run())
    without, within = runs
    assert without.queued == without.refused == 0
    assert (within.queued > 0) is (rate > 1.0)
    assert within.failed == 0 and len(within.done) == len(without.done)
    if rate == 1.0:
        assert within.done == without.done
