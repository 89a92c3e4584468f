"""The twin of `_core.engine_step`: router/sim/engine.py, driven step by step by a heap."""

from __future__ import annotations

import heapq
from array import array
from typing import Any

import msgspec

from warmlane.router.sim.engine import ADAPTER_LOAD_S, ADAPTER_STEP, Engine, EngineConfig, Sequence
from warmlane.router.sim.timing import PRESETS, Timing

TIMING = msgspec.structs.replace(PRESETS["llama-3.1-8b/h100"], step_tokens=64, max_seqs=6)


def plain(timing: Timing = TIMING, **more: Any) -> dict[str, Any]:
    given = msgspec.structs.asdict(timing)
    given |= {"adapter_step": ADAPTER_STEP, "adapter_load_s": ADAPTER_LOAD_S}
    given |= {"blocks": 40, "block_size": 4, "max_num_seqs": timing.max_seqs}
    given |= {"max_num_batched_tokens": timing.step_tokens, "max_loras": 2}
    return given | more


def twin_config(given: dict[str, Any]) -> EngineConfig:
    return EngineConfig(
        timing=TIMING,
        blocks=given["blocks"],
        block_size=given["block_size"],
        max_num_seqs=given["max_num_seqs"],
        max_num_batched_tokens=given["max_num_batched_tokens"],
        max_loras=given["max_loras"],
        tier_blocks=given.get("tier_blocks", 0),
        tier_token_s=given.get("tier_token_s", 0.0),
        events=True,
    )


class Arrival(msgspec.Struct, order=True, frozen=True):
    at: float
    id: int
    prompt: int
    output: int
    family: int
    shared: int
    answers: bool
    adapter: int

    def keys(self, size: int) -> array[int]:
        """Equal families share leading blocks; the rest of a chain is its own."""
        total = self.prompt + (self.output if self.answers else 0)
        shared = [1 + self.family * 1000 + i for i in range(self.shared)]
        own = [10**9 + self.id * 1000 + i for i in range(200)]
        return array("Q", (shared + own)[: total // size])


def by_twin(given: dict[str, Any], requests: list[Arrival]) -> tuple[list[Any], Engine]:
    engine = Engine(twin_config(given))
    log: list[Any] = []
    todo: list[tuple[float, int, Any]] = [(each.at, 1, each) for each in requests]
    order = 2
    heapq.heapify(todo)
    stepping = False
    while todo:
        now, _, what = heapq.heappop(todo)
        if what is None:
            out = engine.end_step(now)
            for sequence in out.advanced if out.advanced else out.finished:
                if sequence.first_token_at == now and (sequence.produced <= 1):
                    log.append((now, "first", sequence.owner))
            log += [(now, "end", each.owner, each.cached) for each in out.finished]
            stepping = False
        else:
            keys = list(what.keys(given["block_size"]))
            name = str(what.adapter) if what.adapter else ""
            engine.add(Sequence(what.prompt, what.output, keys, adapter=name, owner=what.id), now)
        if not stepping:
            seconds = engine.begin_step(now)
            if seconds is not None:
                stepping = True
                order += 1
                heapq.heappush(todo, (now + seconds, 0, None))
    return log, engine
