"""What later events of one open ticket need. Floor 4, a value: leads back to no lane, so that there
is no cycle for the collector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import msgspec

from warmlane.router.catalog import Target
from warmlane.router.decide import RETRY_AFTER_S
from warmlane.router.errors import NoReplica
from warmlane.router.pool import Pool
from warmlane.router.prefix import PrefixKey
from warmlane.router.types import Decision, Outcome, Request

# Slots best first, whole hit tokens of each, the first one's hit with and before trust.
Chosen: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], float, float]


class Named(Protocol):
    """What a face keeps of a pool."""

    name: str


class Open(msgspec.Struct, eq=False, gc=False):
    """One decided request. `raw_hit`: predicted hit tokens on `slot`, before trust."""

    decision: Decision
    request: Request
    key: PrefixKey
    raw_hit: float
    slot: int
    target: Target
    sent_to: int = -1
    ttft_s: float = -1.0  # from the decision to the first token; -1: there was none yet
    epoch: int = 0  # of the exact view of choices[0] at decision time


# Ticket closed, its slot, the outcome, seconds since the decision, and now.
Recording: TypeAlias = Callable[[Open, int, Outcome, float, float], None]


def tickets_full(pool: Pool) -> NoReplica:
    """No ticket is left for a request."""
    return NoReplica(
        f"{pool.ledger.open_tickets} requests of pool {pool.name!r} are under way",
        status=429,
        retry_after_s=RETRY_AFTER_S,
    )
