"""Passive ejection: which replicas of a pool are left alone, and until when. Floor 3.

Owns: a record per slot that only outcomes feed. Must never: read a clock, touch the pool or the
network; the face applies what is returned here (`Pool.set_state`). Back-pressure and 4xx are no
faults and must not be reported as such (attempts.COUNTED).

States of a slot, all of them changes made by the three calls below:

    well --fault, enough in a row or in share, cap not reached--> out (base_s * 2^times, jitter)
    out --due--> trial: receives requests again; one fault sends it out for twice as long
    trial --ok, `failures` times--> well;  every quiet window takes one off `times`

Cost: `ok` is two additions and two comparisons.
"""

from __future__ import annotations

from warmlane._core.upkeep import Record, Records
from warmlane.router.config import Ejection


class Ejector(Records):
    """The ejection state of one pool. `ok` is the base's: every answer calls it."""

    __slots__ = ("_rolled", "_settings")

    def __init__(self, settings: Ejection, now: float) -> None:
        self._settings = settings
        self._rolled = now

    def follow(self, settings: Ejection) -> None:
        """Other settings from now on; who is out stays out as long as was said."""
        self._settings = settings

    def fault(self, slot: int, now: float, rand: float, members: int) -> float:
        """A replica failed. Seconds for which it is ejected from now on; 0.0: it stays.

        rand: 0..1, spreads the returns by +-25 % so that replicas which failed together do not
        come back together. members: replicas of the pool that could serve, ejected ones included.
        """
        record = self._record(slot)
        record.row += 1
        record.failed += 1
        if record.until >= 0.0 or not self._is_ill(record):
            return 0.0
        if self.ejected + 1 > self._settings.max_share * members:
            return 0.0
        seconds = min(self._settings.base_s * 2.0**record.times, self._settings.max_s)
        seconds *= 0.75 + 0.5 * rand
        record.until = now + seconds
        record.times = min(record.times + 1, 30)
        return seconds

    def _is_ill(self, record: Record) -> bool:
        settings = self._settings
        if record.trial or record.row >= settings.failures:
            return True
        failed = record.failed + record.failed_before
        total = failed + record.ok + record.ok_before
        return total >= settings.min_requests and failed >= settings.share * total

    @property
    def ejected(self) -> int:
        """Slots that are out now."""
        return sum(record.until >= 0.0 for record in self._records.values())

    def is_out(self, slot: int) -> bool:
        record = self._records.get(slot)
        return record is not None and record.until >= 0.0

    def due(self, now: float) -> list[int]:
        """Slots whose ejection is over: they are on trial from here on. Call it regularly."""
        if now - self._rolled >= self._settings.window_s / 2:
            self._roll(now)
        back: list[int] = []
        for slot, record in self._records.items():
            if 0.0 <= record.until <= now:
                record.until = -1.0
                record.trial = self._settings.failures
                record.row = record.failed = record.failed_before = 0
                back.append(slot)
        return back

    def _roll(self, now: float) -> None:
        self._rolled = now
        for record in self._records.values():
            if record.times and record.until < 0.0 and not record.failed:
                record.times -= 1
            record.ok_before, record.failed_before = record.ok, record.failed
            record.ok = record.failed = 0

    def forget(self, slot: int) -> None:
        """The replica left; its slot may be another's later."""
        self._records.pop(slot, None)
