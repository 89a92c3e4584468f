"""The measure of `test_vllm_exact` by itself: it must be able to say that a prediction is wrong.

The witness hears a recorded engine, and what it logged explains every count that the engine told.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.event_captures import CLEARING, exception, payload, steps

from .vllm.engines import BLOCK_TOKENS
from .vllm.talks import Asked
from .vllm.verdicts import LAG_S, tally, verdict
from .vllm.witness import Log, Witness, chain

IDS = list(range(200))


def held(log: Log, names: list[bytes]) -> int:
    """Leading blocks that are there, by the whole log."""
    for number, name in enumerate(names):
        stored = sum(1 if each.stored else -1 for each in log.log[name])
        if stored <= 0:
            return number
    return len(names)


def test_the_witness_explains_a_recorded_engine() -> None:
    log, late, compared = Log(), False, 0
    for step in steps("0.32.0-main"):
        for request in step["requests"]:
            late |= request["path"].startswith(CLEARING)
            alone = "cached" in request and len(step["requests"]) == 1
            if alone and not exception(request, clear_is_late=late):
                adapter = "" if request["model"] == "tiny" else request["model"]
                names = chain(request["prompt"], adapter, request.get("cache_salt", ""))
                most = (len(request["prompt"]) - 1) // BLOCK_TOKENS
                assert min(held(log, names), most) * BLOCK_TOKENS == request["cached"]
                compared += 1
        for batch in step["batches"]:
            clears = len(log.clears)
            log.hear(payload(batch))
            if len(log.clears) > clears:
                late = False
                log.log.clear()
    assert compared == 36


class Still(Witness):
    """A witness of given happenings, without sockets."""

    def __init__(self, **happened: Any) -> None:
        self.seen = happened

    def stored(self, replica: str, block: bytes, since: float, until: float) -> bool:
        return (replica, block) == self.seen.get("stored")

    def removed(self, replica: str, block: bytes, since: float, until: float) -> bool:
        return (replica, block) == self.seen.get("removed")

    def cleared(self, replica: str, since: float, until: float) -> bool:
        return since <= self.seen.get("cleared", -1.0) <= until


def row(predicted: int, cached: int | None) -> Asked:
    made = Asked("p", "t", "", "", sent=100.0, done=101.0, replica="r", view="exact", ids=IDS)
    made.predicted, made.cached = predicted, cached
    return made


@pytest.mark.parametrize(
    ("predicted", "cached", "happened", "expected"),
    [
        (96, None, {}, "no truth"),
        (96, 96, {}, "equal"),
        (96, 64, {}, "within"),
        (96, 128, {}, "within"),
        (96, 32, {}, "over"),
        (96, 32, {"removed": 1}, "evicted"),
        (96, 32, {"removed": 2}, "over"),  # another block than the first that was missing
        (96, 32, {"stored": 1}, "over"),
        (96, 32, {"cleared": 100.5}, "late clear"),
        (96, 32, {"cleared": 99.0 - LAG_S}, "over"),
        (32, 128, {}, "under"),
        (32, 128, {"stored": 1}, "arrived"),
        (32, 128, {"stored": 3}, "under"),
        (32, 128, {"cleared": 100.5}, "under"),
    ],
)
def test_what_is_excused_and_what_is_not(
    predicted: int, cached: int | None, happened: dict[str, Any], expected: str
) -> None:
    names = chain(IDS, "", "")
    seen = {key: at if key == "cleared" else ("r", names[at]) for key, at in happened.items()}
    assert verdict(row(predicted, cached), Still(**seen)) == expected


def test_the_tally_counts_and_judges() -> None:
    rows = [row(64, 64), row(64, 32), row(96, 32), row(0, None)]
    beside = row(0, 96)
    beside.view = "approximate"
    made = tally("p", [*rows, beside], Still())
    assert (made.requests, made.told, made.judged, made.right) == (5, 4, 3, 2)
    assert [each.predicted for each in made.wrong] == [96]
    assert made.other["under"] == 1
