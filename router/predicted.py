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

Where ends are seen, first tokens alone are predicted, at the pace of prefill that the engine's own
counters tell (`router/pace.py`) as soon as it is known.

What it never does: close a ticket younger than a scrape can know. Within one replica predicted
moments grow with the order of decisions, up to small changes of its pace, so that two queues a
replica (`_core.expected`) do without a heap.
"""

from __future__ import annotations

from typing import Final

from warmlane._core.expected import Expected
from warmlane._core.ledger import TICKET_BITS
from warmlane.router.core import Router
from warmlane.router.lane import Lane
from warmlane.router.pool import Replica
from warmlane.router.types import LoadSnapshot, Outcome

# Guesses until scrapes correct them: an 8B model on one data-centre GPU computes a prompt at about
# this speed and writes one of many streams at about this one (vLLM's published serving numbers).
PREFILL_TOKENS_PER_S: Final = 8000.0
OUTPUT_TOKENS_PER_S: Final = 40.0
# A request on its way to the engine is not in its counts yet.
_IN_FLIGHT_S: Final = 1.0
# Above this share of limits.tickets the ticket that is due next makes room: a prediction that is
# too long must not refuse requests.
_MOST_SHARE: Final = 0.9
_QUICKEN, _SLACKEN = 0.9, 1.02
_LEAST_PACE, _MOST_PACE = 0.05, 4.0
_OK: Final = Outcome()


class Predicted:
    """Predicted first tokens and ends of one router's tickets. `tick` belongs into a heartbeat.

    `follow` is to be called after each reload of the router. Lanes are known by their numbers,
    which are never used again, so that a pool that is gone is served to its last ticket.
    """

    def __init__(
        self,
        router: Router,
        prefill_tokens_per_s: float = PREFILL_TOKENS_PER_S,
        output_tokens_per_s: float = OUTPUT_TOKENS_PER_S,
    ) -> None:
        self._rates = {
            "prefill_tokens_per_s": prefill_tokens_per_s,
            "output_tokens_per_s": output_tokens_per_s,
        }
        self._router = router
        self._metrics = router.metrics
        self._most = int(_MOST_SHARE * router.config.limits.tickets)
        self._expected: dict[tuple[int, int], Expected] = {}  # by number of the lane, and slot
        self._followed: set[int] = set()
        self._leaving: list[tuple[int, int]] = []  # of pools that are gone
        self.follow()

    def follow(self) -> None:
        """Hear scrapes of pools that are new; forget those that are gone when nothing is open."""
        lanes = {lane.number: lane for lane in self._router.lanes.values()}
        for number, lane in lanes.items():
            if number not in self._followed:
                self._followed.add(number)
                lane.pool.on_load(_OnLoad(self, number))
        self._leaving = [key for key in self._expected if key[0] not in lanes]

    def __len__(self) -> int:
        """Tickets whose end is predicted here."""
        return sum(len(each) for each in self._expected.values())

    def pace(self, pool: str, slot: int) -> float:
        """Factor on predicted times of a replica."""
        return self.of(self._router.lanes[pool], slot).pace

    def of(self, lane: Lane, slot: int) -> Expected:
        """What is predicted of one replica; kept for as long as its lane has open tickets."""
        found = self._expected.get((lane.number, slot))
        if found is None:
            learned = lane.pool.pace.tokens_per_s
            found = Expected(
                lane, slot, learned, self._metrics, _OK, most=self._most, **self._rates
            )
            self._expected[(lane.number, slot)] = found
        return found

    def watch(self, ticket: int, slot: int, now: float, *, end: bool) -> None:
        """Predict the first token of a request that was just sent; with `end` its end too."""
        expected = self._expected.get((ticket >> TICKET_BITS, slot))
        if expected is None:
            lane = self._router.lane_of(ticket)
            if lane is None:  # its pool is gone, and it was closed by its age
                return
            expected = self.of(lane, slot)
        expected.watch(ticket, now, end)

    def tick(self, now: float) -> None:
        """Tell the router of every moment that has come."""
        for expected in self._expected.values():
            expected.tick(now)
        for key in self._leaving:
            expected = self._expected[key]
            if expected.idle and not expected.lane.open_tickets:
                del self._expected[key]
        if self._leaving:
            self._leaving = [key for key in self._leaving if key in self._expected]

    def on_load(self, number: int, replica: Replica) -> None:
        """A scrape of a replica: compare its count with the tickets that are watched here."""
        load, expected = replica.load, self._expected.get((number, replica.slot))
        if load is None or not expected:
            return
        known = expected.opened_until(load.taken_at - _IN_FLIGHT_S)
        young = expected.lane.pool.ledger.requests[replica.slot] - known
        surplus = known - max(0.0, load.waiting + load.running - young)
        if surplus >= 1.0:
            for _ in range(int(surplus)):
                expected.close_next(load.taken_at)
            expected.pace = max(_LEAST_PACE, expected.pace * _QUICKEN)
        elif surplus < 0.0:
            expected.pace = min(_MOST_PACE, expected.pace * _SLACKEN)


class _OnLoad:
    """A pool's load listener, which knows the number of its lane."""

    __slots__ = ("_number", "_predicted")

    def __init__(self, predicted: Predicted, number: int) -> None:
        self._predicted = predicted
        self._number = number

    def __call__(self, replica: Replica, previous: LoadSnapshot | None) -> None:
        del previous
        self._predicted.on_load(self._number, replica)
