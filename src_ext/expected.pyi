"""Types of the compiled module; the contract is in expected.pxd, the meaning in expected.pyx."""

from array import array
from typing import Any

from warmlane._core.desk import Desk

class Expected:
    """One replica's tickets whose first token, and perhaps end, nobody will see.

    lane: hears `first_token(ticket, now)` and `close(ticket, ok, now)`. learned: prefill tokens a
    second by slot, 0 where nothing is known. most: open tickets of the lane from which on the one
    that is due next makes room, which `metrics.limit_reached` hears. All times in seconds.
    """

    pace: float
    """Factor on predicted times; below 1 the replica is quicker than guessed."""
    @property
    def lane(self) -> Any: ...
    @property
    def slot(self) -> int: ...
    def __init__(
        self,
        lane: Desk,
        slot: int,
        learned: array[float],
        metrics: object,
        ok: object,
        *,
        prefill_tokens_per_s: float,
        output_tokens_per_s: float,
        most: int,
    ) -> None: ...
    def __len__(self) -> int:
        """Tickets whose end is predicted."""
    @property
    def room(self) -> int:
        """Tickets that fit both queues before they grow, for tests."""
    @property
    def idle(self) -> bool:
        """Is nothing waited for?"""
    def watch(self, ticket: int, now: float, end: bool) -> None:
        """A request of the Python half that was just sent: predict its first token; with `end` its
        end too. MemoryError."""
    def tick(self, now: float) -> None:
        """Tell of every moment that has come."""
    def close_next(self, now: float) -> None:
        """Close the ticket that is due next, whether it is time or not."""
    def opened_until(self, moment: float) -> int:
        """How many tickets whose end is predicted were opened then or before."""

def _fail_allocation_after(count: int) -> None:
    """Tests only: the allocation after `count` more of this module fails once."""
