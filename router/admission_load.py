"""Is the pool past saturation: has no replica room for another request? Floor 3.

A replica has room while little is unstarted there (requests without a first token, so that one
always waits behind the one that runs and the engine never idles) or what waits is done soon, by
its learned pace. Asked only while admission is active; costs one comparison a replica. It reads
columns of the pool and changes nothing.
"""

from __future__ import annotations

from typing import Final

from warmlane.router.config_admission import Admission
from warmlane.router.pool import Pool

# Until a replica's pace is known: about that of an 8B model on one H100 for prompts of 8,000
# tokens (42,800) halved, so that slower fleets are not taken for idle ones.
GUESS_TOKENS_PER_S: Final = 20_000.0


class PoolLoad:
    """Room of one pool's replicas."""

    def __init__(self, pool: Pool, config: Admission) -> None:
        self._pool = pool
        self.follow(config)

    def follow(self, config: Admission) -> None:
        """Other bounds from now on."""
        self._backlog_s = config.backlog_s
        self._unstarted = config.unstarted

    def backlog_s(self, slot: int) -> float:
        """Seconds of prefill that wait or run there."""
        pool = self._pool
        pace = pool.pace.tokens_per_s[slot] or GUESS_TOKENS_PER_S
        return pool.backlog_tokens(slot) / pace

    def unstarted(self, slot: int) -> float:
        """Requests there without a first token, others' among them."""
        pool = self._pool
        ledger = pool.ledger
        return ledger.requests[slot] - ledger.running[slot] + pool.foreign.waiting[slot]

    def has_room(self, slot: int, share: float = 1.0) -> bool:
        """Whether a ready replica takes a request at once. share: of the bounds."""
        unstarted = self.unstarted(slot)
        if unstarted <= 1:
            return True
        if self.backlog_s(slot) >= self._backlog_s * share:
            return False
        if unstarted <= self._unstarted * share:
            return True
        replica = self._pool.replicas[slot]
        load = None if replica is None else replica.load
        return load is None or load.waiting <= 0  # else short prompts wait for memory or a place

    def has_any(self) -> bool:
        """Whether a replica is ready at all."""
        return 1 in self._pool.ready

    def idle(self) -> bool:
        """Whether fewer requests are under way than replicas are ready: one stands still."""
        pool = self._pool
        ready, ours, others = pool.ready, pool.ledger.requests, pool.foreign.requests
        slots = [slot for slot in range(len(ready)) if ready[slot]]
        return sum(ours[slot] + others[slot] for slot in slots) < len(slots)

    def room(self, share: float = 1.0) -> bool:
        """Whether any ready replica has room."""
        ready = self._pool.ready
        return any(ready[slot] and self.has_room(slot, share) for slot in range(len(ready)))
