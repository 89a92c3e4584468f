"""One publisher's batches in order, and how a stream heals. Sans-I/O: sockets are `kv_events`.

A batch has a sequence number that grows by one and begins at 0 with each life of the engine;
nothing names the life. So a number alone proves nothing: whenever something may have been missed
(a gap, a smaller number, a reconnect), a replay is asked for from the last batch that was applied,
and its payload must be the one that was applied then. If it is another one the engine is another.

    joining ----> replaying ----> live        complete: the replica is trusted
                   ^      |         |
                   +------+---------+--> live, not complete: relearning

What cannot be replayed (no replay socket, or it does not reach back) is dropped and relearned: the
replica stays on the approximate view until its removals are of known blocks again, its cache is
cleared, or the engine starts anew.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final

from warmlane._core.kv_events import BROKEN, CLEARED, MORE
from warmlane.router.exact import ExactView

SLICE_BLOCKS: Final = 2048  # about 0.4 ms
HELD_BATCHES: Final = 50_000  # live ones that wait for the end of a replay
HELD_BYTES: Final = 64 * 1024 * 1024
# vLLM's publisher looks for replay requests only between batches: up to 0.1 s on an idle engine.
SILENT_S: Final = 5.0  # without a first answer
QUIET_S: Final = 1.0  # between two answers: the end marker was lost (vLLM before 0.33)
REPLAY_S: Final = 60.0  # all attempts together
ATTEMPTS: Final = 3  # without progress
WINDOW: Final = 128  # removals that are judged together
STRANGERS: Final = 0.02  # share of unknown ones with which a relearned view is believed
DOUBT: Final = 0.10  # share of unknown ones with which a complete view is doubted
RESYNC_S: Final = 60.0


class Stream:
    """Heals one source of one slot. The owner sends `ask` (then `asked`), and calls `tick`.

    replay: there is a replay socket. counts: what happened, by name, for metrics.
    """

    def __init__(self, exact: ExactView, slot: int, *, replay: bool, now: float) -> None:
        self.exact = exact
        self.slot = slot
        self.replay = replay
        self.counts: Counter[str] = Counter()
        self.ask: int | None = None  # a replay from here is wanted
        self.live = True
        self.complete = False
        self.expected: int | None = None
        self._last = b""  # the batch before `expected`
        self.calm = False  # trusted: the next batch only has to be applied
        self.intake = exact.straight
        self._verify = False  # the next replayed batch must be that one
        self._held: deque[tuple[int, bytes]] = deque()
        self._held_bytes = 0
        self._pending: bytes | None = None  # applied in slices
        self._began = self._moved = now  # the replay; its last sign of life
        self._failures = 0
        self._answered = False
        self._cut = True  # not connected (yet): what is published now is not heard
        self._ever = False
        self._unfit = False  # its groups cannot be told from its events
        self._resynced = -RESYNC_S
        self._retry_at = float("inf")
        self._base = exact.intake.stats(slot)
        if replay:
            self.live = False  # `connected` asks: a batch before the subscription would be lost
        else:
            self._doubt("joined late: there is no replay socket")

    # What is heard

    def batch(self, seq: int, payload: bytes, now: float) -> None:
        """A live one. Not while `busy`."""
        if not self.live:
            if seq == 0 and self.expected is None:
                self._fresh()  # an engine that has just started: nothing was missed
            else:
                self._hold(seq, payload)
                return
        if self.expected is None:
            self.expected = seq
            if seq == 0:
                self.complete = True
        if seq == self.expected:
            self._apply(seq, payload)
        elif seq > self.expected:
            self._gap(seq, payload, now)
        else:
            self._restart(seq, payload, now)
        self._settle()

    def applied(self, count: int, last: bytes, flags: int) -> None:
        """So many live ones from `expected` on are in the intake already, while `calm`.

        last: the last one's payload. flags: what was special about it.
        """
        assert self.expected is not None
        self.expected += count
        self._last = last
        self.counts["batches"] += count
        if flags:
            if flags & CLEARED:
                self.exact.was_cleared(self.slot)
            self._happened(last, flags)
            self._settle()

    def replayed(self, seq: int, payload: bytes, now: float) -> None:
        """One of the replay. Not while `busy`."""
        if self.live:
            return
        self._moved, self._answered = now, True
        if self._verify and not self._verified(seq, payload, now):
            return
        if self.expected is None:
            self.expected = seq
            self.complete = seq == 0
            if seq:
                self._doubt("its replay does not reach back to its start")
        if seq == self.expected:
            self._failures = 0
            self._apply(seq, payload)
        elif seq > self.expected:
            self.counts["replay_gap"] += 1
            self._ask_again(now)

    def ended(self, now: float) -> None:
        """The replay's end marker."""
        if self.live:
            return
        if self._verify:  # it does not even have what was heard before: another life
            self._another_life(now)
            return
        if self.expected is None:
            self.expected, self.complete = 0, True  # it has not published anything yet
        self.live = True
        self.counts["replayed"] += 1
        self._settle()

    def disconnected(self) -> None:
        """The publisher's connection is gone."""
        self._cut = True
        self._doubt("disconnected")

    def connected(self, now: float) -> None:
        """It is there (again): what it sent meanwhile, and whether it is the same, is unknown."""
        if not self._cut:
            return
        first, self._cut, self._ever = not self._ever, False, True
        if not first:
            self.counts["reconnect"] += 1
        if not self.live:
            self._ask(self._overlap(), now)
        elif self.replay:
            self._catch_up("reconnected", now)
        elif not first:
            self._lose("reconnected: there is no replay socket")
        self._settle()

    def asked(self, now: float) -> None:
        """The replay that `ask` wanted is asked for: from here on its time counts."""
        self.ask, self._moved = None, now

    def tick(self, now: float) -> None:
        """Time limits, and whether the view is still to be believed. Every second or so."""
        if self.live:
            self._judge(now)
            return
        limit = QUIET_S if self._answered else SILENT_S
        if self.ask is not None or now - self._moved < limit:
            return
        if self._answered:
            self.counts["replay_no_end"] += 1
        if self._answered or not self._cut:
            self._ask_again(now)  # else it is not up (yet), and `connected` asks

    # Work in slices

    @property
    def busy(self) -> bool:
        """`step` has something to do; nothing else may be told before."""
        return self._pending is not None or (self.live and bool(self._held))

    def step(self, now: float) -> None:
        """Go on with a batch, or take the next of those that waited for a replay."""
        if self._pending is not None:
            self._slice(self._pending)
        elif self._held and self.live:
            seq, payload = self._held.popleft()
            self._held_bytes -= len(payload)
            assert self.expected is not None
            if seq == self.expected:
                self._apply(seq, payload)
            elif seq > self.expected:
                self._gap(seq, payload, now, first=True)
        self._settle()

    def _apply(self, seq: int, payload: bytes) -> None:
        self.expected = seq + 1
        self._last = payload
        self.counts["batches"] += 1
        self._slice(payload)

    def _slice(self, payload: bytes) -> None:
        self._happened(payload, self.exact.apply(self.slot, payload, SLICE_BLOCKS))

    def _happened(self, payload: bytes, flags: int) -> None:
        self.calm = False
        self._pending = payload if flags & MORE else None
        if flags & BROKEN:
            self.counts["broken"] += 1
            self._lose("a batch could not be read")
        elif flags & CLEARED and not self.complete:
            self.complete = True  # it holds nothing: that is known
            self._base = self.exact.intake.stats(self.slot)

    def _settle(self) -> None:
        """Trusted from here on, where everything is known and done."""
        if self.live and self.complete and not self._cut and not self._unfit and not self.busy:
            self._failures = 0
            self.exact.trust(self.slot)
            # With its block size known nothing but the blocks themselves changes.
            self.calm = self.exact.intake.block_size(self.slot) > 0

    def _doubt(self, why: str) -> None:
        self.calm = False
        self.exact.distrust(self.slot, why)

    # What went wrong

    def _gap(self, seq: int, payload: bytes, now: float, *, first: bool = False) -> None:
        assert self.expected is not None
        missed = seq - self.expected
        self.counts["gap"] += 1
        self.counts["missed"] += missed
        if self.replay:
            self._hold(seq, payload, first=first)
            self._catch_up(f"{missed} batches were missed", now)
        else:
            self._lose(f"{missed} batches were missed: there is no replay socket")
            self._apply(seq, payload)

    def _restart(self, seq: int, payload: bytes, now: float) -> None:
        self.calm = False
        self.counts["restart"] += 1
        self.exact.reset(self.slot, restarted=True)
        self.expected, self.complete = None, False
        self._base = self.exact.intake.stats(self.slot)
        if seq == 0:
            self.complete = True
            self._apply(seq, payload)
        elif self.replay:
            self._hold(seq, payload)
            self._catch_up("the engine was restarted", now)
        else:
            self._doubt("the engine was restarted: there is no replay socket")
            self._apply(seq, payload)

    def _another_life(self, now: float) -> None:
        self.counts["restart"] += 1
        self.exact.reset(self.slot, restarted=True)
        self.expected, self.complete, self._verify = None, False, False
        self._base = self.exact.intake.stats(self.slot)
        # What was held since the reconnect may be of either life; the replay has it all.
        self._drop_held()
        self._ask(0, now)

    def _fresh(self) -> None:
        self.exact.reset(self.slot, restarted=False)
        self._base = self.exact.intake.stats(self.slot)
        self._drop_held()
        self.live, self.ask = True, None

    def _lose(self, why: str) -> None:
        """Drop what is known of its blocks and learn again from what comes."""
        self.counts["relearn"] += 1
        self.exact.clear_view(self.slot)
        self._doubt(why)
        self._drop_held()
        self._base = self.exact.intake.stats(self.slot)
        self.live, self.complete, self.expected = True, False, None
        self._verify, self.ask, self._pending = False, None, None

    # Replays

    def _catch_up(self, why: str, now: float) -> None:
        self._doubt(why)
        self._failures, self._began = 0, now
        self._ask(self._overlap(), now)

    def _overlap(self) -> int:
        """Where to begin: at the last batch applied, which proves that it is the same engine."""
        self._verify = bool(self.expected)
        return self.expected - 1 if self.expected else 0

    def _ask(self, start: int, now: float) -> None:
        if self.live:
            self._began = now
        self.live = self._answered = self.calm = False
        self.ask, self._moved = start, now
        self.counts["replay"] += 1

    def _ask_again(self, now: float) -> None:
        self._failures += 1
        if self._failures > ATTEMPTS or now - self._began > REPLAY_S:
            self.counts["replay_failed"] += 1
            self._lose("its replay socket does not answer in full")
            self._retry_at = now + RESYNC_S
        else:
            self._ask(self._overlap(), now)

    def _verified(self, seq: int, payload: bytes, now: float) -> bool:
        """Whether this replayed batch goes on from what was applied; False: it is done with."""
        assert self.expected is not None
        if seq < self.expected - 1:
            return False
        self._verify = False
        if seq == self.expected - 1:
            if payload != self._last:
                self._another_life(now)
            return False
        if seq > self.expected:
            # It does not reach back: what was missed is gone, learn from here on.
            self.counts["relearn"] += 1
            self.exact.clear_view(self.slot)
            self._base = self.exact.intake.stats(self.slot)
            self._doubt("its replay does not reach back")
            self.expected, self.complete = seq, False
        return True

    def _hold(self, seq: int, payload: bytes, *, first: bool = False) -> None:
        if first:
            self._held.appendleft((seq, payload))
        else:
            self._held.append((seq, payload))
        self._held_bytes += len(payload)
        if len(self._held) > HELD_BATCHES or self._held_bytes > HELD_BYTES:
            self.counts["held_over"] += 1
            self._lose("more came than could be held for a replay")

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    # Is it to be believed?

    def _judge(self, now: float) -> None:
        stats, base = self.exact.intake.stats(self.slot), self._base
        if stats["ambiguous"] > base["ambiguous"]:
            self.complete = False
            self._doubt("one of its hashes stands for several blocks")
            return
        self._unfit = stats["other_groups"] > 0 and not stats["stored"]
        if self._unfit:
            self._doubt("none of its KV cache groups is full attention")
            return
        unknown = stats["unknown_removals"] - base["unknown_removals"]
        total = stats["removed"] - base["removed"] + unknown
        if now >= self._retry_at and not self.complete:
            self._retry_at = float("inf")
            self._resync("its replay is asked for once more", now)
            return
        if total < WINDOW:
            return
        orphans = stats["orphans"] - base["orphans"]
        stored = stats["stored"] - base["stored"]
        self._base = stats
        if not self.complete:
            if unknown <= STRANGERS * total and orphans <= STRANGERS * (stored + orphans):
                self.complete = True
                self.counts["relearned"] += 1
                self._settle()
        elif unknown > DOUBT * total and not self.exact.tree.capped:
            self.counts["doubt"] += 1
            self._resync(f"{unknown} of {total} removals are of unknown blocks", now)

    def _resync(self, why: str, now: float) -> None:
        if not self.replay or now - self._resynced < RESYNC_S:
            self._lose(why)
            return
        self._resynced = now
        self.exact.clear_view(self.slot)
        self.expected, self.complete = None, False
        self._catch_up(why, now)
