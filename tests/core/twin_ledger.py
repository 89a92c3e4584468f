"""Plain-Python twin of `_core.ledger`: open tickets as dicts, columns added up when asked for."""

from __future__ import annotations

from typing import Any


class TwinLedger:
    def __init__(self, max_tickets: int) -> None:
        self.max_tickets = max_tickets
        self.open_tickets: dict[int, dict[str, Any]] = {}
        self.stale = 0
        self.full = 0
        self.prefilled: dict[int, int] = {}  # by slot, tokens since the beginning

    def open(
        self,
        ticket: int,
        slot: int,
        prefill: float,
        decode: float,
        now: float,
        expected: float = 0.0,
    ) -> None:
        assert ticket not in self.open_tickets, "a ticket number was reused while open"
        assert len(self.open_tickets) < self.max_tickets
        self.open_tickets[ticket] = {
            "slot": slot,
            "prefill": max(0, round(prefill)),
            "decode": max(0, round(decode)),
            "output": max(0, round(expected)),
            "opened": now,
            "running": False,
            "moved": False,
            "began": None,
        }

    def _live(self, ticket: int) -> dict[str, Any] | None:
        entry = self.open_tickets.get(ticket)
        if entry is None:
            self.stale += 1
        return entry

    def moved(self, ticket: int, slot: int, prefill: float) -> bool:
        entry = self._live(ticket)
        if entry is None:
            return False
        entry["slot"], entry["moved"] = slot, True
        if not entry["running"]:
            entry["prefill"] = max(0, round(prefill))
        return True

    def first_token(self, ticket: int, now: float) -> float:
        entry = self._live(ticket)
        if entry is None:
            return -1.0
        if entry["running"]:
            self.stale += 1
            return -1.0
        slot = entry["slot"]
        self.prefilled[slot] = self.prefilled.get(slot, 0) + entry["prefill"]
        entry["running"] = True
        entry["prefill"] = 0
        entry["began"] = (now, *self._batch(slot), self.prefilled[slot])
        return float(max(0.0, now - entry["opened"]))

    def _batch(self, slot: int) -> tuple[int, float]:
        """Requests that decode there, and their share of the tokens."""
        here = [each for each in self.open_tickets.values() if each["slot"] == slot]
        running = sum(each["running"] for each in here)
        return running, sum(each["decode"] + each["output"] for each in here) * running / len(here)

    def decoded(self, ticket: int, now: float) -> tuple[float, float, float, float] | None:
        entry = self.open_tickets.get(ticket)
        if entry is None or not entry["running"] or entry["moved"]:
            return None
        began, running, context, prefilled = entry["began"]
        running_now, context_now = self._batch(entry["slot"])
        return (
            max(0.0, now - began),
            (running + running_now) / 2,
            (context + context_now) / 2,
            float(self.prefilled[entry["slot"]] - prefilled),
        )

    def progress(self, ticket: int, output: float) -> bool:
        entry = self._live(ticket)
        if entry is None:
            return False
        entry["output"] = max(entry["output"], round(output))
        return True

    def close(self, ticket: int, now: float) -> tuple[int, float]:
        entry = self._live(ticket)
        if entry is None:
            return (-1, -1.0)
        del self.open_tickets[ticket]
        return (entry["slot"], max(0.0, now - entry["opened"]))

    def expire(self, older_than: float, limit: int) -> list[int]:
        closed: list[int] = []
        for ticket, entry in self.open_tickets.items():
            if len(closed) == limit or entry["opened"] >= older_than:
                break
            closed.append(ticket)
        for ticket in closed:
            del self.open_tickets[ticket]
        return closed

    def column(self, name: str, slots: int) -> list[float]:
        out = [0.0] * slots
        for entry in self.open_tickets.values():
            amount = {
                "requests": 1,
                "running": int(entry["running"]),
                "prefill_tokens": entry["prefill"],
                "decode_tokens": entry["decode"] + entry["output"],
            }[name]
            out[entry["slot"]] += amount
        return out
