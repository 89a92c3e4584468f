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
replica do without a heap. Cost: 1 us a request, and what the two events cost the lane.
"""

from __future__ import annotations

from collections import deque
from typing import Final

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
_MASK: Final = (1 << TICKET_BITS) - 1
_OK: Final = Outcome()


class _Watched:
    """One replica's tickets that are watched here, each queue in the order of decisions."""

    __slots__ = ("ends", "firsts", "lane", "pace")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.pace = 1.0  # factor on predicted times; below 1: it is quicker than guessed
        self.firsts: deque[tuple[float, int]] = deque()  # when due, ticket
        self.ends: deque[tuple[float, int, float]] = deque()  # when due, ticket, when opened


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
        self._prefill = prefill_tokens_per_s
        self._output = output_tokens_per_s
        self._router = router
        self._metrics = router.metrics
        self._most = int(_MOST_SHARE * router.config.limits.tickets)
        self._watched: dict[tuple[int, int], _Watched] = {}  # by number of the lane, and slot
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
        self._leaving = [key for key in self._watched if key[0] not in lanes]

    def __len__(self) -> int:
        """Tickets whose end is predicted here."""
        return sum(len(each.ends) for each in self._watched.values())

    def pace(self, pool: str, slot: int) -> float:
        """Factor on predicted times of a replica."""
        watched = self._watched.get((self._router.lanes[pool].number, slot))
        return 1.0 if watched is None else watched.pace

    def watch(self, ticket: int, slot: int, now: float, *, end: bool) -> None:
        """Predict the first token of a request that was just sent; with `end` its end too."""
        key = (ticket >> TICKET_BITS, slot)
        watched = self._watched.get(key)
        if watched is None:
            found = self._router.lane_of(ticket)
            if found is None:  # its pool is gone, and it was closed by its age
                return
            watched = self._watched[key] = _Watched(found)
        lane, pace = watched.lane, watched.pace
        # `pace` is corrected by ends that are predicted. Where ends are seen nothing corrects it,
        # and the pace that the engine's own counters tell takes the place of the guess.
        learned = 0.0 if end else lane.pool.pace.tokens_per_s[slot]
        rate = learned if learned > 0 else self._prefill / pace
        # The column holds this request's own uncached tokens too: it was booked at the decision.
        first = now + lane.pool.ledger.prefill_tokens[slot] / rate
        watched.firsts.append((first, ticket))
        if end:
            watched.ends.append((first + pace * lane.output_tokens / self._output, ticket, now))
            if lane.open_tickets > self._most:
                self._metrics.limit_reached("predicted_tickets")
                self._close_next(watched, now)

    def tick(self, now: float) -> None:
        """Tell the router of every moment that has come."""
        for watched in self._watched.values():
            firsts, ends, lane = watched.firsts, watched.ends, watched.lane
            slot_of = lane.pool.ledger.slot_of
            while firsts and firsts[0][0] <= now:
                ticket = firsts.popleft()[1]
                if slot_of(ticket & _MASK) >= 0:
                    lane.first_token(ticket, now)
            while ends and ends[0][0] <= now:
                self._close_next(watched, now)
        for key in self._leaving:
            watched = self._watched[key]
            if not watched.firsts and not watched.ends:
                del self._watched[key]
        if self._leaving:
            self._leaving = [key for key in self._leaving if key in self._watched]

    def _close_next(self, watched: _Watched, now: float) -> None:
        """Close the ticket that is due next, whether it is time or not."""
        ticket, lane = watched.ends.popleft()[1], watched.lane
        if lane.pool.ledger.slot_of(ticket & _MASK) >= 0:
            lane.close(ticket, _OK, now)

    def on_load(self, number: int, replica: Replica) -> None:
        """A scrape of a replica: compare its count with the tickets that are watched here."""
        load, watched = replica.load, self._watched.get((number, replica.slot))
        if load is None or watched is None or not watched.ends:
            return
        ends, lane = watched.ends, watched.lane
        newest = load.taken_at - _IN_FLIGHT_S
        known = sum(each[2] <= newest for each in ends)
        young = lane.pool.ledger.requests[replica.slot] - known
        surplus = known - max(0.0, load.waiting + load.running - young)
        if surplus >= 1.0:
            for _ in range(int(surplus)):
                self._close_next(watched, load.taken_at)
            watched.pace = max(_LEAST_PACE, watched.pace * _QUICKEN)
        elif surplus < 0.0:
            watched.pace = min(_MOST_PACE, watched.pace * _SLACKEN)


class _OnLoad:
    """A pool's load listener, which knows the number of its lane."""

    __slots__ = ("_number", "_predicted")

    def __init__(self, predicted: Predicted, number: int) -> None:
        self._predicted = predicted
        self._number = number

    def __call__(self, replica: Replica, previous: LoadSnapshot | None) -> None:
        del previous
        self._predicted.on_load(self._number, replica)
