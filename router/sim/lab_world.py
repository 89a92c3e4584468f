"""What surrounds the router in the lab: how replicas are made, what happens to them, who sees it.

No clock and no chance of its own. Cost: `CacheView` with a lag walks a chain by halves, about 10 us
a decision; without it asks the compiled fleet.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from warmlane._core.engine_step import Fleet
from warmlane.router.prefix import PrefixKey
from warmlane.router.sim.engine import ADAPTER_LOAD_S, ADAPTER_STEP
from warmlane.router.sim.timing import Timing
from warmlane.router.types import ReplicaSpec

BLOCK_TOKENS = 16
CHANGES = ("fail", "slow", "join")
# A token comes from host memory at 20 GB/s a GPU; the KV reads of `Timing` are at 3 TB/s on H100.
TIER_SLOWER = 150.0
# What a step takes however little it computes, and what each sequence adds: all of a decode step.
_DECODING = ("t0_s", "weights_s", "kv_s", "sequence_s")
TIER_WORTH = 0.8  # of a token in the slower tier, as `index.cpu_worth`


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something happens to a replica at `at_s` (seconds of the run).

    what: "fail": it restarts empty at once and its requests are sent again, the router is not told;
    "slow": it is `factor` times as fast from then on, nor is the router told that; "join": it takes
    requests from then on, with an empty cache, and none before.
    """

    at_s: float
    slot: int
    what: str
    factor: float = 0.5


def constants(
    timing: Timing, blocks: int, tier_tokens: int = 0, decodes: float = 1.0
) -> dict[str, float]:
    """What `Fleet` takes for one replica. decodes: factor by which it decodes faster."""
    given: dict[str, float] = msgspec.structs.asdict(timing)
    slower = {each: given[each] / decodes for each in _DECODING}
    return (
        given
        | slower
        | {
            "adapter_step": ADAPTER_STEP,
            "adapter_load_s": ADAPTER_LOAD_S,
            "blocks": blocks,
            "block_size": BLOCK_TOKENS,
            "max_num_seqs": timing.max_seqs,
            "max_num_batched_tokens": timing.step_tokens,
            "max_loras": 1,
            "tier_blocks": tier_tokens // BLOCK_TOKENS,
            "tier_token_s": timing.kv_s * TIER_SLOWER,
        }
    )


def specs(count: int, zones: Sequence[str] = ()) -> list[ReplicaSpec]:
    """Replicas of the pool; zones are given out in turn."""
    return [
        ReplicaSpec(
            url=f"http://replica-{slot}:8000", zone=zones[slot % len(zones)] if zones else ""
        )
        for slot in range(count)
    ]


@runtime_checkable
class Watcher(Protocol):
    """A scorer that wants to know which blocks are in use where."""

    def asks(self, keys: Sequence[int]) -> None: ...
    def began(self, slot: int, keys: Sequence[int]) -> None: ...
    def ended(self, slot: int, keys: Sequence[int]) -> None: ...


class CacheView:
    """What each replica holds, as an index fed by its events would know, `lag_s` late."""

    def __init__(self, fleet: Fleet, lag_s: float, worth: float) -> None:
        self._fleet = fleet
        self._lag_s = lag_s
        self._worth = worth
        self._held = array("i", bytes(4 * len(fleet)))
        self._keys: list[dict[int, int]] = [{} for _ in range(len(fleet))]
        self._late: deque[tuple[float, int, array[int], array[int]]] = deque()
        self.now = 0.0  # of the decision

    def heard(self, slot: int, now: float) -> None:
        """The replica's events up to `now` are on their way."""
        if self._lag_s > 0.0:
            fleet = self._fleet
            gone, stored = fleet.take_removed(slot), fleet.take_stored(slot)
            if gone or stored:
                self._late.append((now + self._lag_s, slot, gone, stored))

    def failed(self, slot: int) -> None:
        """The replica is empty and says so at once: its stream began anew."""
        self._keys[slot].clear()
        for entry in [each for each in self._late if each[1] == slot]:
            self._late.remove(entry)

    def look(self, key: PrefixKey) -> array[int] | None:
        """Leading blocks of a chain by slot; None: nobody holds any."""
        if self._lag_s <= 0.0:
            most = self._fleet.held(key.keys, self._held, tier_worth=self._worth)
            return self._held if most else None
        self._settle()
        most = 0
        for slot, held in enumerate(self._keys):
            low, high = 0, len(key.keys)
            while low < high:  # a replica forgets leaves before roots
                middle = (low + high) // 2
                if key.keys[middle] in held:
                    low = middle + 1
                else:
                    high = middle
            self._held[slot] = low
            most = max(most, low)
        return self._held if most else None

    def _settle(self) -> None:
        late = self._late
        while late and late[0][0] <= self.now:
            _, slot, gone, stored = late.popleft()
            held = self._keys[slot]
            for key in gone:
                left = held.get(key, 0) - 1
                if left > 0:
                    held[key] = left
                else:
                    held.pop(key, None)
            for key in stored:
                held[key] = held.get(key, 0) + 1
