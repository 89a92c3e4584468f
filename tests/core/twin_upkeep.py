"""Plain-Python twin of `_core.upkeep`: the same counts in plain classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Placements:
    def __init__(self, slots: int, mean: float, expire: Callable[[float], float]) -> None:
        self.placed_tokens = [0.0] * slots
        self.mean_uncached_tokens = mean
        self.fresh_until = float("inf")
        self.expire = expire

    def freshen(self, now: float) -> None:
        if now >= self.fresh_until:
            self.fresh_until = self.expire(now)

    def placed(self, slot: int, tokens: float) -> None:
        self.placed_tokens[slot] += tokens
        self.mean_uncached_tokens += 0.02 * (tokens - self.mean_uncached_tokens)


@dataclass
class Record:
    ok: int = 0
    row: int = 0
    trial: int = 0
    until: float = -1.0


class Records:
    def __init__(self) -> None:
        self.records: dict[int, Record] = {}

    def ok(self, slot: int) -> None:
        record = self.records.setdefault(slot, Record())
        record.ok, record.row, record.trial = record.ok + 1, 0, max(0, record.trial - 1)
