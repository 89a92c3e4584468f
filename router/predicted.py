"""The end of requests whose answer nobody watches: predicted, and corrected by scrapes. Floor 4.

A gateway that sends only requests through the router (ext_proc at response level 0) leaves open
when a first token came and when an answer ended, and the ledger would fill up for ever. So each
such ticket gets two predicted moments: prefill ends after the uncached tokens in front of it at
the replica's pace, the answer after the expected output at the pace of one stream. Scrapes correct
both ways:

- The engine has fewer requests than the ledger: the surplus that was due next is closed at once and
  the replica's pace quickens.
- The engine has more: they count as others' work until the next scrape (`Pool.update_load`), and
  the pace slackens a little.

What it never does: close a ticket younger than a scrape can know. Cost: a heap push and pop a
request, about 1 us; a scrape costs the replica's open tickets.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from warmlane._core.ledger import TICKET_BITS
from warmlane.router.core import Router
from warmlane.router.pool import Replica
from warmlane.router.types import LoadSnapshot, Outcome

# Guesses until scrapes correct them: an 8B model on one data-centre GPU computes a prompt at about
# this speed and writes one of many streams at about this one (vLLM's published serving numbers).
PREFILL_TOKENS_PER_S: Final = 8000.0
OUTPUT_TOKENS_PER_S: Final = 40.0
# A request on its way to the engine is not in its counts yet.
_IN_FLIGHT_S: Final = 1.0
_QUICKEN, _SLACKEN = 0.9, 1.02
_LEAST_PACE, _MOST_PACE = 0.05, 4.0
_MASK: Final = (1 << TICKET_BITS) - 1
_OK: Final = Outcome()


class _Watch:
    """One ticket that nobody else closes."""

    __slots__ = ("due", "ends", "opened", "slot", "ticket")

    def __init__(self, ticket: int, slot: int, opened: float, due: float, ends: float) -> None:
        self.ticket = ticket
        self.slot = slot
        self.opened = opened
        self.due = due
        self.ends = ends  # 0: only the first token is predicted, somebody sees the end


class Predicted:
    """Predicted first tokens and ends of one router's tickets. `tick` belongs into a heartbeat."""

    def __init__(
        self,
        router: Router,
        prefill_tokens_per_s: float = PREFILL_TOKENS_PER_S,
        output_tokens_per_s: float = OUTPUT_TOKENS_PER_S,
    ) -> None:
        self._router = router
        self._prefill = prefill_tokens_per_s
        self._output = output_tokens_per_s
        self._heap: list[tuple[float, int, _Watch]] = []
        self._turn = 0
        # (pool, slot) -> factor on predicted times, and the tickets to be closed in order of age.
        self._pace: dict[tuple[str, int], float] = {}
        self._open: dict[tuple[str, int], dict[int, _Watch]] = {}
        self._numbers = list(router.pools)
        for name, pool in router.pools.items():
            pool.on_load(self._listener(name))

    def __len__(self) -> int:
        """Tickets whose end is predicted here."""
        return sum(len(watches) for watches in self._open.values())

    def pace(self, pool: str, slot: int) -> float:
        """Factor on predicted times of a replica; below 1: it is quicker than guessed."""
        return self._pace.get((pool, slot), 1.0)

    def watch(self, ticket: int, slot: int, now: float, *, end: bool) -> None:
        """Predict the first token of a request that was just sent; with `end` its end too."""
        name = self._numbers[ticket >> TICKET_BITS]
        lane = self._router.lanes[name]
        pace = self._pace.get((name, slot), 1.0)
        ledger = lane.pool.ledger
        # The column holds this request's own uncached tokens too: it was booked at the decision.
        first = now + pace * ledger.prefill_tokens[slot] / self._prefill
        ends = first + pace * lane.output_tokens / self._output if end else 0.0
        watch = _Watch(ticket, slot, now, first, ends)
        if end:
            self._open.setdefault((name, slot), {})[ticket] = watch
        self._push(watch)

    def tick(self, now: float) -> None:
        """Tell the router of every moment that has come."""
        heap, router = self._heap, self._router
        while heap and heap[0][0] <= now:
            watch = heappop(heap)[2]
            lane = router.lanes[self._numbers[watch.ticket >> TICKET_BITS]]
            if lane.pool.ledger.slot_of(watch.ticket & _MASK) < 0:
                self._forget(watch)
            elif watch.due != watch.ends:
                router.first_token(watch.ticket, now)
                if watch.ends:
                    watch.due = watch.ends
                    self._push(watch)
            else:
                self._close(watch, now)

    def _push(self, watch: _Watch) -> None:
        self._turn += 1
        heappush(self._heap, (watch.due, self._turn, watch))

    def _forget(self, watch: _Watch) -> bool:
        name = self._numbers[watch.ticket >> TICKET_BITS]
        watches = self._open.get((name, watch.slot))
        return watches is not None and watches.pop(watch.ticket, None) is not None

    def _close(self, watch: _Watch, now: float) -> None:
        if self._forget(watch):
            self._router.first_token(watch.ticket, now)
            self._router.close(watch.ticket, _OK, now)

    def _listener(self, pool: str) -> _OnLoad:
        return _OnLoad(self, pool)

    def on_load(self, pool: str, replica: Replica) -> None:
        """A scrape of a replica: compare its count with the tickets that are watched here."""
        load, key = replica.load, (pool, replica.slot)
        watches = self._open.get(key)
        if load is None or not watches:
            return
        known = [each for each in watches.values() if each.opened <= load.taken_at - _IN_FLIGHT_S]
        young = self._router.pools[pool].ledger.requests[replica.slot] - len(known)
        surplus = len(known) - max(0.0, load.waiting + load.running - young)
        pace = self._pace.get(key, 1.0)
        if surplus >= 1.0:
            known.sort(key=lambda each: each.ends)
            for watch in known[: int(surplus)]:
                self._close(watch, load.taken_at)
            self._pace[key] = max(_LEAST_PACE, pace * _QUICKEN)
        elif surplus < 0.0:
            self._pace[key] = min(_MOST_PACE, pace * _SLACKEN)


class _OnLoad:
    """The pool's load listener, which knows the pool's name."""

    __slots__ = ("_pool", "_predicted")

    def __init__(self, predicted: Predicted, pool: str) -> None:
        self._predicted = predicted
        self._pool = pool

    def __call__(self, replica: Replica, previous: LoadSnapshot | None) -> None:
        del previous
        self._predicted.on_load(self._pool, replica)
