"""Statistics of a workload: lengths, and how much of the prompts ideal caches would hold.

Hits are token-level: the longest prefix of full blocks that some earlier prompt brought into an
infinite cache. `shared` is one cache for everybody, `round_robin[n]` n caches in turn. Generated
tokens are not counted as cacheable (no trace says which new blocks are earlier answers).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from warmlane.router.sim.traces import Session, Turn, Workload


class Spread(msgspec.Struct, frozen=True):
    """Mean and percentiles of token counts."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the traces' README publishes for each set, computed the same way."""

    sessions: int
    requests: int
    prompt: Spread
    output: Spread
    shared: float
    round_robin: dict[int, float]
    think: Spread


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of sorted values lie; 0 of nothing."""
    if not values:
        return 0.0
    return values[min(len(values) - 1, int(share * len(values)))]


def spread(values: list[float]) -> Spread:
    """Mean and percentiles of values in any order."""
    ordered = sorted(values)
    if not ordered:
        return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.99))
    return Spread(sum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


def by_time(workload: Workload) -> list[tuple[float, Session, Turn]]:
    """All turns in the order of their recorded times."""
    turns = [
        (session.start_s + turn.at_s, session, turn)
        for session in workload.sessions
        for turn in session.turns
    ]
    turns.sort(key=lambda entry: entry[0])
    return turns


class InfiniteCache:
    """Block ids seen so far. Ids are prefix-chained, so what is present is a prefix of a prompt."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def hit(self, ids: Sequence[int]) -> int:
        """Leading blocks present; then all of them are. O(log n) for what was there."""
        seen = self._seen
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            if ids[middle] in seen:
                low = middle + 1
            else:
                high = middle
        seen.update(ids[low:])
        return low


def describe(workload: Workload, caches: Sequence[int] = (4, 8)) -> Statistics:
    """Compute the statistics. `caches`: numbers of caches for round robin."""
    size = workload.block_size
    turns = [turn for _, _, turn in by_time(workload)]
    total = sum(turn.prompt for turn in turns) or 1
    shared = InfiniteCache()
    split = {count: [InfiniteCache() for _ in range(count)] for count in caches}
    shared_hits = 0
    hits = dict.fromkeys(caches, 0)
    for number, turn in enumerate(turns):
        ids = list(turn.blocks())[: turn.prompt // size]
        shared_hits += shared.hit(ids)
        for count in caches:
            hits[count] += split[count][number % count].hit(ids)
    thinks = [turn.think_s for session in workload.sessions for turn in session.turns[1:]]
    return Statistics(
        sessions=len(workload.sessions),
        requests=len(turns),
        prompt=spread([float(turn.prompt) for turn in turns]),
        output=spread([float(turn.output) for turn in turns]),
        shared=shared_hits * size / total,
        round_robin={count: hits[count] * size / total for count in caches},
        think=spread(thinks),
    )
