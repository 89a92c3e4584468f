"""Recorded engines through the intake: what their events say is what they then do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.core.event_captures import CLEARING, exception, payload, predicted, steps
from warmlane._core.kv_events import BROKEN, CLEARED, Intake
from warmlane._core.radix import RadixTree

BAD = ("broken", "odd", "unknown_kinds", "orphans", "ambiguous", "refused", "other_sizes")


class Play:
    """One recording, step by step."""

    def __init__(self, replicas: int = 1) -> None:
        self.intake = Intake(RadixTree(0, 8))
        for replica in range(replicas):
            self.intake.open(replica)
        self.late = False  # a clear is done, its event is not sent yet
        self.told: list[tuple[str, int, int, str]] = []  # scenario, predicted, actual, exception

    def ask(self, step: dict[str, Any]) -> None:
        """Compare with the counts of requests that ran alone."""
        for request in step["requests"]:
            self.late |= request["path"].startswith(CLEARING)
            if "cached" in request and len(step["requests"]) == 1:
                why = exception(request, clear_is_late=self.late)
                found = predicted(self.intake, request)
                self.told.append((step["scenario"], found, request["cached"], why))

    def hear(self, step: dict[str, Any], replica: int = 0) -> None:
        for batch in step["batches"]:
            found = self.intake.apply(replica, payload(batch))
            assert found & BROKEN == 0
            self.late &= not found & CLEARED
        self.intake.tree.check_invariants()


@pytest.mark.parametrize(
    ("name", "truths", "exceptions"),
    [
        ("0.32.0-main", 40, {"prompt_logprobs": 1, "n": 1, "late clear": 2}),
        ("0.28.0-block16", 47, {"prompt_logprobs": 1, "n": 1, "late clear": 2}),
    ],
)
def test_the_engines_own_counts(name: str, truths: int, exceptions: dict[str, int]) -> None:
    play = Play()
    for step in steps(name):
        play.ask(step)
        play.hear(step)
    assert len(play.told) == truths
    assert Counter(why for *_, why in play.told if why) == exceptions
    assert [row for row in play.told if row[1] != row[2] and not row[3]] == []
    # Hits are among them: an index that says 0 to everything does not pass.
    assert sum(1 for row in play.told if row[2] > 0) >= 9
    counted = play.intake.stats(0)
    assert {field: counted[field] for field in BAD} == dict.fromkeys(BAD, 0)


@pytest.mark.parametrize(
    "name",
    [
        "0.32.0-main",
        "0.28.0-block16",
        "0.32.0-sha256_cbor-bytes",
        "0.32.0-xxhash_cbor-seed42",
        "0.32.0-hybrid-swa",
    ],
)
def test_an_engine_stores_what_was_not_predicted(name: str) -> None:
    """Blocks stored with a request = the blocks that it fills - the predicted hit.

    The truth of engines that tell no cached tokens: a second look at the others.
    """
    play, compared = Play(), 0
    for step in steps(name):
        alone = step["requests"][0] if len(step["requests"]) == 1 else {}
        usable = "prompt" in alone and not exception(alone, clear_is_late=play.late)
        usable = usable and "vllm_xargs" not in alone  # reports resident blocks once more
        found = predicted(play.intake, alone) if usable else 0
        play.late |= any(r["path"].startswith(CLEARING) for r in step["requests"])
        before = play.intake.stats(0)["stored"]
        play.hear(step)
        size = play.intake.block_size(0)
        if usable and size and step["scenario"] != "start":
            # The KV of the last generated token is never computed.
            filled = (len(alone["prompt"]) + sum(alone["outputs"]) - 1) // size
            stored = play.intake.stats(0)["stored"] - before
            assert stored == filled - found // size, step["scenario"]
            compared += 1
    assert compared >= 10


def test_a_hybrid_model_is_told_by_its_full_attention_group() -> None:
    play = Play()
    for step in steps("0.32.0-hybrid-swa"):
        play.hear(step)
    assert play.intake.stats(0)["other_groups"] > 0
    assert play.intake.stats(0)["unknown_removals"] == 0


def test_data_parallel_ranks_are_apart() -> None:
    play = Play(replicas=2)
    for step in steps("0.32.0-dp2"):
        for batch in step["batches"]:
            assert play.intake.apply(batch["rank"], payload(batch)) == 0
            assert play.intake.stats(batch["rank"])["rank"] == batch["rank"]
        for request in step["requests"]:
            if "rank" in request:
                here = predicted(play.intake, request, request["rank"])
                there = predicted(play.intake, request, 1 - request["rank"])
                assert here == (len(request["prompt"]) - 1) // 32 * 32 > there == 0
    assert play.intake.stats(0)["stored"] and play.intake.stats(1)["stored"]


def test_prefill_and_decode_engines_both_tell_what_they_hold() -> None:
    play = Play(replicas=2)
    roles = {"prefill": 0, "decode": 1}
    seen: dict[str, list[set[int]]] = {}
    for step in steps("0.32.0-pd-nixl"):
        for batch in step["batches"]:
            assert play.intake.apply(roles[batch["role"]], payload(batch)) == 0
        holders = [set(who) for _, who in play.intake.tree.dump().values()]
        seen[step["scenario"]] = holders
    assert seen["prefill_leg"] == [{0}] * len(seen["prefill_leg"])
    assert seen["decode_leg"] == [{0, 1}] * len(seen["prefill_leg"])
    assert play.intake.shares(0) == 2  # one algorithm and seed: proven by the first prompt


@pytest.mark.parametrize("form", ["0.11.2", "0.17.1", "0.23.0"])
def test_arrays_of_older_engines_say_what_maps_say(form: str) -> None:
    newer = {step["scenario"]: step["batches"] for step in steps("0.32.0-main")}
    older: dict[str, list[bytes]] = {}
    for row in steps("legacy-arrays"):
        if row["form"] == form:
            older.setdefault(row["scenario"], []).append(payload(row))
    assert len(older) == 9
    for scenario, payloads in older.items():
        if form == "0.11.2" and scenario in ("cache_salt_a", "lora_0"):
            continue  # its events name neither salt nor adapter
        dumps = []
        for frames in (payloads, [payload(b) for b in newer[scenario]][: len(payloads)]):
            intake = Intake(RadixTree(0, 8))
            intake.open(0)
            for frame in frames:
                assert intake.apply(0, frame) & BROKEN == 0
            counted = intake.stats(0)
            dumps.append((intake.tree.dump(), counted["stored"], counted["orphans"]))
        assert dumps[0] == dumps[1], scenario
