"""Runs a modelled replica in wall-clock time, `speed` times faster than the real one.

The engine's clock is wall time since the start, times the speed. The driver wakes at the end of a
step, but at most every `tick_s`, and runs all steps that have ended by then in one go: so a fast
replica costs one wake-up for several steps, its streams carry several tokens in an event (as real
ones do under load), and the times inside the engine stay exact. An arrival first brings the engine
up to now.

Owns the clock, the pause states and the lag measurement; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from warmlane.router.sim.engine import Engine, Event, Sequence


class Owner(Protocol):
    """Whoever asked for a sequence hears when it has new tokens or has ended."""

    def progress(self, sequence: Sequence) -> None: ...


class Driver:
    """Drives one engine on the running event loop."""

    def __init__(
        self,
        engine: Engine,
        speed: float,
        tick_s: float,
        on_events: Callable[[list[Event]], None] | None = None,
    ) -> None:
        self.engine = engine
        self.speed = speed
        self.tick_s = tick_s
        self.paused = False
        self.frozen = False
        self.lag_max_s = 0.0  # how late the latest wake-up came, wall seconds
        self.lag_sum_s = 0.0
        self.wakes = 0
        self._on_events = on_events
        self._loop = asyncio.get_running_loop()
        self._wall0 = time.monotonic()
        self._engine0 = 0.0
        self._step_end: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held: list[Sequence] = []
        self._touched: dict[Sequence, None] = {}
        self._drained: list[Callable[[], None]] = []

    def now(self) -> float:
        """Engine time in seconds."""
        return self._engine0 + (time.monotonic() - self._wall0) * self.speed

    def set_speed(self, speed: float) -> None:
        """Change the speed from now on; engine time does not jump."""
        now = self.now()
        self._advance(now)
        self._engine0, self._wall0, self.speed = now, time.monotonic(), speed
        self._flush()

    @property
    def busy(self) -> bool:
        """Some sequence is running or waiting inside the engine."""
        return bool(self.engine.running or self.engine.waiting)

    def submit(self, sequence: Sequence) -> None:
        """A request arrives now. ValueError when it could never run. Held while paused."""
        if self.paused:
            self._held.append(sequence)
            return
        now = self.now()
        self._advance(now)
        self.engine.add(sequence, now)
        if self._step_end is None and not self.frozen:
            self._begin(now)
        self._schedule()

    def abort(self, sequence: Sequence) -> None:
        """The client has gone: stop at once. The owner hears nothing."""
        if sequence in self._held:
            self._held.remove(sequence)
            return
        self.engine.abort(sequence, self.now())
        self._touched.pop(sequence, None)
        self._tell_drained()

    def abort_all(self) -> None:
        """End everything in the engine with reason "abort"; owners hear it."""
        now = self.now()
        self._advance(now)
        for sequence in [*self.engine.running, *self.engine.waiting]:
            self.engine.abort(sequence, now)
            self._touched[sequence] = None
        self._flush()

    def pause(self, mode: str, done: Callable[[], None]) -> None:
        """Stop taking requests: mode "abort" ends what runs, "keep" freezes it, "wait" lets it end.

        `done` is called when the state is reached.
        """
        self.paused = True
        if mode == "abort":
            self.abort_all()
        elif mode == "keep":
            self._advance(self.now())
            self._flush()
            self.frozen = True
        else:
            self.when_idle(done)
            return
        done()

    def when_idle(self, done: Callable[[], None]) -> None:
        """Call `done` as soon as nothing runs or waits in the engine."""
        if self.busy:
            self._drained.append(done)
        else:
            done()

    def resume(self) -> None:
        """Go on, with the requests that came in the meantime."""
        if self.frozen:
            self.frozen = False
            if self._step_end is not None:  # the frozen step ends now
                self._step_end = self.now()
        self.paused = False
        held, self._held = self._held, []
        for sequence in held:
            self.submit(sequence)
        if self._step_end is None:
            self._begin(self.now())
        self._schedule()

    def close(self) -> None:
        """No further wake-ups."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.frozen = True

    def _begin(self, now: float) -> None:
        seconds = self.engine.begin_step(now)
        self._step_end = None if seconds is None else now + seconds

    def _advance(self, until: float) -> None:
        """Run every step that has ended by `until`."""
        if self.frozen:
            return
        while self._step_end is not None and self._step_end <= until:
            now = self._step_end
            output = self.engine.end_step(now)
            for sequence in output.advanced:
                self._touched[sequence] = None
            for sequence in output.finished:
                self._touched[sequence] = None
            if output.events and self._on_events is not None:
                self._on_events(output.events)
            self._begin(now)

    def _flush(self) -> None:
        touched, self._touched = self._touched, {}
        for sequence in touched:
            owner = sequence.owner
            if owner is not None:
                owner.progress(sequence)  # type: ignore[attr-defined]
        self._tell_drained()

    def _tell_drained(self) -> None:
        if self._drained and not self.busy:
            drained, self._drained = self._drained, []
            for done in drained:
                done()

    def _schedule(self) -> None:
        """Wake at the end of the step under way, one tick from now at the earliest."""
        if self._timer is not None or self.frozen or self._step_end is None:
            return
        left_s = (self._step_end - self.now()) / self.speed
        delay_s = max(left_s, self.tick_s)
        due = self._loop.time() + delay_s
        self._timer = self._loop.call_later(delay_s, self._wake, due)

    def _wake(self, due: float) -> None:
        self._timer = None
        lag_s = self._loop.time() - due
        self.wakes += 1
        self.lag_sum_s += lag_s
        self.lag_max_s = max(self.lag_max_s, lag_s)
        self._advance(self.now())
        self._flush()
        self._schedule()
