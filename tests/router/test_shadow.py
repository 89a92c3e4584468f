"""Shadow decisions: the switch, the share, and the sums by which two choices are compared."""

from __future__ import annotations

from typing import Any

import pytest

from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.lane import Prepared
from warmlane.router.shadow import OTHER, Mode, Shadow
from warmlane.router.types import Decision, Kind, ModelList, Outcome, Request

RATE = 1000.0


def build(mode: Mode = "shadow", share: float = 1.0) -> tuple[Router, Shadow]:
    replicas = [f"http://10.0.0.{number}:80" for number in range(3)]
    router = Router(from_data({"pools": [{"replicas": replicas, "models": ["m"]}]}))
    return router, Shadow(router, config(mode, share))


def config(mode: Mode = "shadow", share: float = 1.0, baseline: str = "least-requests") -> Any:
    plain = {"mode": mode, "share": share, "baseline": baseline, "prefill_tokens_per_s": RATE}
    return from_data({"shadow": plain}).shadow


def decide(router: Router, shadow: Shadow, model: str = "m") -> tuple[Prepared, Decision]:
    request = Request(kind=Kind.COMPLETIONS, model=model, prompt=b"warm" * 1000)
    prepared = router.prepare(request)
    return prepared, prepared.lane.decide(prepared, 1.0, 7)


def warm(router: Router, shadow: Shadow, slot: int) -> None:
    """Make one replica hold the prompt, and be idle again."""
    _, decision = decide(router, shadow)
    router.sent(decision.ticket, slot, 1.0)
    router.close(decision.ticket, Outcome(), 1.0)


def test_a_choice_with_the_prefix_gains_its_hit_and_its_time() -> None:
    router, shadow = build()
    warm(router, shadow, 1)
    prepared, decision = decide(router, shadow)
    assert decision.choices[0] == 1
    shadow.beside(prepared, decision).told(2)
    row = shadow.report()["m"]
    assert row["decisions"] == 1 and row["same_share"] == 0.0
    assert row["prompt_tokens"] == 1000
    assert row["our_hit_tokens"] == decision.hit_tokens[0] > 900
    assert row["their_hit_tokens"] == 0
    assert row["ttft_gain_ms_mean"] == pytest.approx(1e3 * row["our_hit_tokens"] / RATE, rel=0.01)


def test_work_that_is_booked_there_makes_them_wait() -> None:
    router, shadow = build()
    first, busy = decide(router, shadow)
    prepared, decision = decide(router, shadow)
    assert decision.choices[0] != busy.choices[0]
    shadow.beside(prepared, decision).told(busy.choices[0])
    row = shadow.report()["m"]
    assert row["ttft_gain_ms_mean"] == pytest.approx(1000.0)
    del first


def test_the_same_choice_gains_nothing() -> None:
    router, shadow = build()
    prepared, decision = decide(router, shadow)
    shadow.beside(prepared, decision).told(decision.choices[0])
    row = shadow.report()["m"]
    assert (row["same_share"], row["ttft_gain_ms_mean"]) == (1.0, 0.0)


@pytest.mark.parametrize("slot", [-1, 99])
def test_a_choice_that_nobody_told_is_counted_apart(slot: int) -> None:
    router, shadow = build()
    prepared, decision = decide(router, shadow)
    shadow.beside(prepared, decision).told(slot)
    row = shadow.report()["m"]
    assert (row["decisions"], row["unknown"], row["prompt_tokens"]) == (1, 1, 0)
    assert "same_share" not in row
    counts = router.metrics.counts["warmlane_shadow_decisions_total"]
    assert counts == {("m", "unknown"): 1}


def test_metrics_say_the_same_as_the_report() -> None:
    router, shadow = build()
    warm(router, shadow, 1)
    prepared, decision = decide(router, shadow)
    shadow.beside(prepared, decision).told(2)
    counts = router.metrics.counts
    assert counts["warmlane_shadow_decisions_total"] == {("m", "no"): 1}
    assert counts["warmlane_shadow_prompt_tokens_total"] == {("m",): 1000}
    hits = counts["warmlane_shadow_hit_tokens_total"]
    assert hits[("m", "ours")] == shadow.sums["m"].our_hit_tokens
    times = counts["warmlane_shadow_ttft_milliseconds_total"]
    assert times[("m", "theirs")] > times[("m", "ours")]
    (line,) = shadow.log_lines()
    assert "model='m' decisions=1" in line and "\n" not in line


def test_a_name_that_nobody_lists_is_no_label() -> None:
    replicas = ["http://10.0.0.1:80"]
    router = Router(from_data({"pools": [{"replicas": replicas}]}))
    shadow = Shadow(router, config())
    prepared, decision = decide(router, shadow, "what a client wrote")
    shadow.beside(prepared, decision).told(0)
    router.pools["default"].set_models(0, ModelList(models=frozenset({"listed"})))
    prepared, decision = decide(router, shadow, "listed")
    shadow.beside(prepared, decision).told(0)
    assert set(shadow.report()) == {OTHER, "listed"}


def test_the_other_side_is_the_baseline_policy() -> None:
    router, shadow = build()
    warm(router, shadow, 1)
    prepared, decision = decide(router, shadow)
    assert decision.choices[0] == 1
    others = {shadow.other(prepared, 1.0, rand) for rand in range(6)}
    assert others == {0, 2}, "least in-flight shuns the one that has our request"


def test_the_switch_and_its_share() -> None:
    _, shadow = build("active")
    assert shadow.always and shadow.acts(0) and shadow.acts(65_535)
    shadow.switch(share=0.25)
    assert not shadow.always
    assert sum(shadow.acts(rand) for rand in range(65_536)) == 16_384
    shadow.switch("shadow")
    assert not shadow.acts(0)
    shadow.switch("active", 1.0)
    assert shadow.always


@pytest.mark.parametrize(("mode", "share"), [("on", None), (None, 1.5), (None, -0.1)])
def test_a_bad_switch_changes_nothing(mode: Mode | None, share: float | None) -> None:
    _, shadow = build("active", 0.5)
    with pytest.raises(ValueError, match=r"mode|share"):
        shadow.switch(mode, share)
    assert (shadow.mode, shadow.share) == ("active", 0.5)
