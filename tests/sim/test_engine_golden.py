"""The engine model against a real vLLM: same requests, same hits, stores and removals."""

from __future__ import annotations

import gzip
import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from warmlane._core.hashing import root_key
from warmlane.router.sim.engine import Engine, EngineConfig, Removed, Sequence, Stored
from warmlane.router.sim.timing import PRESETS
from warmlane.router.sim.tokens import block_keys

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm-0.32.0-kv-events.jsonl.gz"
BLOCK = 32
# recorded traffic whose requests are not in the capture: only their events are
UNSEEN = {"before", "lora_busy", "client_disconnect"}
# usage of n=2 reports the last sample, the model's first sequence is the first one
SAMPLES = {"n_2"}


def steps() -> list[dict[str, Any]]:
    with gzip.open(GOLDEN, "rt") as lines:
        return [json.loads(line) for line in lines]


class Replay:
    """Feeds the recorded steps to the model and keeps what it did."""

    def __init__(self) -> None:
        self.engine = Engine(
            EngineConfig(
                timing=PRESETS["llama-3.1-8b/h100"],
                blocks=160,
                block_size=BLOCK,
                max_num_seqs=4,
                max_num_batched_tokens=2048,
                max_loras=2,
                events=True,
            )
        )
        self.now = 0.0

    def step(self, step: dict[str, Any]) -> tuple[list[tuple[int, int]], list[Any]]:
        """Returns (model's cached tokens, recorded ones) per request, and the model's events."""
        pairs: list[tuple[Sequence, int]] = []
        for request in step["requests"]:
            if "/reset_prefix_cache" in request["path"] or "/pause" in request["path"]:
                self.engine.reset_cache()
            for index, choice in enumerate(request.get("choices", [])):
                sequence = self.sequence(request, choice)
                self.engine.add(sequence, self.now)
                if index == 0:
                    pairs.append((sequence, request["cached_tokens"]))
        events: list[Any] = []
        for _ in range(20_000):
            seconds = self.engine.begin_step(self.now)
            if seconds is None:
                break
            self.now += seconds
            events += self.engine.end_step(self.now).events
        self.engine.pool.check_invariants()
        return [(sequence.cached, recorded) for sequence, recorded in pairs], events

    @staticmethod
    def sequence(request: dict[str, Any], choice: dict[str, Any]) -> Sequence:
        ids = array("I", choice["prompt"] + choice["output"])
        adapter = "" if request["model"] == "tiny" else request["model"]
        keys = block_keys(root_key("tiny", adapter, request["salt"]), ids[:-1], BLOCK)
        return Sequence(
            len(choice["prompt"]),
            len(choice["output"]),
            keys,
            tokens=ids,
            adapter=adapter,
            read_cache=not request["prompt_logprobs"],
        )


def test_cached_tokens_equal_what_the_real_engine_reported() -> None:
    replay = Replay()
    compared = 0
    for step in steps():
        if step["scenario"] in UNSEEN:
            continue
        pairs, _ = replay.step(step)
        if step["scenario"] in SAMPLES:
            continue
        for mine, real in pairs:
            assert mine == real, step["scenario"]
            compared += 1
    assert compared >= 40


def test_stored_blocks_equal_the_real_events_step_by_step() -> None:
    replay = Replay()
    compared = 0
    for step in steps():
        if step["scenario"] in UNSEEN:
            continue
        _, events = replay.step(step)
        if step["scenario"] == "report_mode_full":
            continue  # asks the engine to tell reused blocks again
        mine = [
            list(event.sequence.tokens[event.first * BLOCK : event.last * BLOCK])
            for event in events
            if isinstance(event, Stored)
        ]
        real = [e["tokens"] for batch in step["events"] for e in batch if e["type"] == "stored"]
        if step["scenario"] == "preemption":
            # four requests raced: how prefill fell into steps differs, what was stored does not
            assert sum(map(len, mine)) == sum(map(len, real))
        else:
            assert mine == real, step["scenario"]
        compared += len(real)
    assert compared > 150


def test_removals_come_in_the_real_order() -> None:
    """Of the blocks that the model knows, the real engine evicts the same ones in the same order.

    The recording began on a warm engine, so the first real removals are of blocks stored before.
    """
    replay = Replay()
    names: dict[int, int] = {}  # real hash -> model's key
    mine: list[int] = []
    real: list[int] = []
    for step in steps():
        if step["scenario"] == "preemption":
            break
        if step["scenario"] not in UNSEEN:
            _, events = replay.step(step)
            stored = [event for event in events if isinstance(event, Stored)]
            keys = [
                key for event in stored for key in event.sequence.keys[event.first : event.last]
            ]
            hashes = hashes_of(step, "stored")
            # report_mode_full tells reused blocks first
            names.update(zip(hashes[len(hashes) - len(keys) :], keys, strict=True))
            mine += [event.key for event in events if isinstance(event, Removed)]
        real += hashes_of(step, "removed")
    known = [names[name] for name in real if name in names]
    assert len(mine) > 80
    assert mine[: len(known)] == known[: len(mine)]


def hashes_of(step: dict[str, Any], kind: str) -> list[int]:
    """Block hashes of all events of one kind in a step of the recording, in order."""
    events = [event for batch in step["events"] for event in batch if event["type"] == kind]
    return [name for event in events for name in event["hashes"]]


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_pool_needs_a_block_besides_the_null_block(blocks: int) -> None:
    with pytest.raises(ValueError, match="at least 2 blocks"):
        Engine(EngineConfig(timing=PRESETS["llama-3.1-8b/h100"], blocks=blocks))
