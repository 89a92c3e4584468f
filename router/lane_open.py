"""What later events of one open ticket need. Floor 4, a value: leads back to no lane, so that there
is no cycle for the collector."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import msgspec

from warmlane.router.catalog import Target
from warmlane.router.prefix import PrefixKey
from warmlane.router.types import Decision, Request

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
    epoch: int = 0  # of the exact view of choices[0] at decision time
