"""Plain-Python twin of `_core.expected`: tickets of the Python half only."""

from __future__ import annotations

from array import array
from collections import deque
from typing import Any

from warmlane._core.ledger import TICKET_BITS

_MASK = (1 << TICKET_BITS) - 1


class Expected:
    """See expected.pyi."""

    def __init__(
        self,
        lane: Any,
        slot: int,
        learned: array[float],
        metrics: Any,
        ok: object,
        *,
        prefill_tokens_per_s: float,
        output_tokens_per_s: float,
        most: int,
    ) -> None:
        self.lane, self.slot, self.pace = lane, slot, 1.0
        self._learned, self._metrics, self._ok, self._most = learned, metrics, ok, most
        self._prefill, self._output = prefill_tokens_per_s, output_tokens_per_s
        self._firsts: deque[tuple[float, int]] = deque()  # when due, ticket
        self._ends: deque[tuple[float, int, float]] = deque()  # when due, ticket, when opened

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def idle(self) -> bool:
        return not self._firsts and not self._ends

    def watch(self, ticket: int, now: float, end: bool) -> None:
        lane, pace = self.lane, self.pace
        learned = 0.0 if end else self._learned[self.slot]
        rate = learned if learned > 0 else self._prefill / pace
        first = now + lane.pool.ledger.prefill_tokens[self.slot] / rate
        self._firsts.append((first, ticket))
        if end:
            self._ends.append((first + pace * lane.output_tokens / self._output, ticket, now))
            if lane.open_tickets > self._most:
                self._metrics.limit_reached("predicted_tickets")
                self.close_next(now)

    def tick(self, now: float) -> None:
        self._skip_closed()
        while self._firsts and self._firsts[0][0] <= now:
            self.lane.first_token(self._firsts.popleft()[1], now)
            self._skip_closed()
        while self._ends and self._ends[0][0] <= now:
            self.close_next(now)

    def close_next(self, now: float) -> None:
        if self._ends:
            ticket = self._ends.popleft()[1]
            if self.lane.pool.ledger.slot_of(ticket & _MASK) >= 0:
                self.lane.close(ticket, self._ok, now)
            self._skip_closed()

    def _skip_closed(self) -> None:
        """A ticket that ended before its first token holds up nobody."""
        slot_of = self.lane.pool.ledger.slot_of
        while self._firsts and slot_of(self._firsts[0][1] & _MASK) < 0:
            self._firsts.popleft()

    def opened_until(self, moment: float) -> int:
        return sum(opened <= moment for _, _, opened in self._ends)
