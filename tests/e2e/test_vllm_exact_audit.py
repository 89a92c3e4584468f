"""`warmlane audit` on two real engines that hold the same prompts: their own numbers come out."""

from __future__ import annotations

import pytest

from .vllm.commands import command, complete, computed, finished, prompts, scrapes
from .vllm.engines import BLOCK_TOKENS
from .vllm.fleet import Fleet, until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

DURATION_S = 15
COUNT = 10


def test_what_a_blind_balancer_recomputes(fleet: Fleet) -> None:
    one, two = fleet.engines
    first, second = prompts(COUNT, 40, 51), prompts(COUNT // 2, 40, 52)
    for engine in fleet.engines:
        engine.reset_cache()
        complete(engine.url, prompts(1, 10, 50 + engine.port))  # the clear is told with this step
    before = [computed(engine.url) for engine in fleet.engines]
    looks = [scrapes(engine.log) for engine in fleet.engines]
    replicas = [word for engine in fleet.engines for word in ("--replica", engine.url)]
    audit = command("audit", "--json", "--duration", str(DURATION_S), "--timeout", "20", *replicas)
    until(
        lambda: all(
            scrapes(engine.log) > look for engine, look in zip(fleet.engines, looks, strict=True)
        ),
        "the audit reads metrics",
        60,
    )
    complete(one.url, first)  # cold: nobody has them
    again = complete(two.url, first)  # a balancer that does not look: the other one has them all
    hits = complete(one.url, first)  # found there: nothing is computed but the tails
    complete(two.url, second)  # cold
    lengths = [usage["prompt_tokens"] for usage in again]
    assert all(usage["prompt_tokens_details"]["cached_tokens"] > 0 for usage in hits)

    status, report = finished(audit)
    print(
        f"\naudit: computed {report['computed']:.0f}, recomputed {report['recomputed']:.0f} "
        f"({report['recomputed_share']:.1%}), duplicated {report['duplicated_blocks']} blocks, "
        f"saving {report['saving']}, notes {report['notes']}"
    )
    assert status == 0, report["notes"]
    assert [each["view"] for each in report["replicas"]] == ["whole", "whole"]
    # what was computed, by the engines' own counters
    after = [computed(engine.url) for engine in fleet.engines]
    told = sum(after) - sum(before)
    assert report["computed"] == pytest.approx(told, abs=1)
    # what was computed although held elsewhere: the whole blocks of the second engine's first half
    blocks = sum(length // BLOCK_TOKENS for length in lengths)
    assert report["recomputed"] == blocks * BLOCK_TOKENS
    assert report["recomputed_share"] == pytest.approx(blocks * BLOCK_TOKENS / told, rel=1e-6)
    assert report["duplicated_blocks"] == blocks
    assert report["duplicated_tokens"] == blocks * BLOCK_TOKENS
    saving = report["saving"]
    share = report["recomputed_share"]
    assert saving["low"] <= saving["expected"] <= share <= saving["high"]
    assert report["gpu_hours_a_day"]["high"] > 0
    # the witness, an ear of its own, saw the same
    assert fleet.twice() == report["duplicated_blocks"]
