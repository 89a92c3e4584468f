"""In the place of a lane that a reload took away, once its last ticket is closed. Floor 4.

Numbers of lanes are never used again, so that late news of its tickets finds this.
"""

from __future__ import annotations

from warmlane.router.types import Outcome, Rest


class ClosedLane:
    """In the place of a lane that is gone: news of its tickets comes too late, which is legal."""

    __slots__ = ()
    open_tickets = 0
    gate = None

    def sent(self, ticket: int, slot: int, now: float) -> None:
        """Too late."""

    def moved(self, ticket: int, slot: int, now: float) -> None:
        """Too late."""

    def rest(self, ticket: int, now: float, wanted: Rest) -> tuple[int, ...]:
        return ()

    def learn_pace(self, ticket: int, now: float) -> None:
        """Too late."""

    def first_token(self, ticket: int, now: float) -> float:
        return -1.0

    def progress(self, ticket: int, output_tokens: int) -> None:
        """Too late."""

    def close(self, ticket: int, outcome: Outcome, now: float) -> bool:
        return False

    def maintain(self, now: float, older_than: float, budget_us: int) -> bool:
        return False
