"""A workload made N times as long, for traces that hold too few sessions to load a fleet.

Every session is played N times, as that many users' own: blocks that one session of the trace uses
alone get ids of their own in each copy, blocks that several sessions use (system prompts, common
first messages) stay what they are. The arrivals of the whole are those of the trace, N times one
after another, so a rate means what it meant; who starts when is dealt anew in each copy. Lengths,
think times and the share of a session that is found in its own past are those of the trace.

Requests that a trace tells as sessions of one request each share their past by blocks that several
use: the copies of such a conversation (Mooncake) find all of it in the caches. Copies say
something where the trace knows its sessions or shares nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import msgspec

from warmlane.router.sim.chance import Chance
from warmlane.router.sim.trace_types import Runs, Session, TraceError, Workload

MAX_COPIES = 1_000
MAX_REQUESTS = 2_000_000  # in all: a request takes about half a kilobyte here


def repeat(source: Workload, copies: int, seed: int = 1) -> Workload:
    """The workload `copies` times. The same arguments give the same one everywhere. TraceError."""
    if not 1 <= copies <= MAX_COPIES:
        raise TraceError(f"copies {copies}: must be 1 to {MAX_COPIES}")
    if copies * source.requests > MAX_REQUESTS:
        raise TraceError(
            f"{copies} copies of {source.requests} requests: more than {MAX_REQUESTS:,}"
        )
    if copies == 1 or not source.sessions:
        return source
    chance = Chance(seed)
    own = _Own(source.sessions)
    starts = [session.start_s for session in source.sessions]
    # The gap from the last start of a copy to the first of the next is a mean one.
    length_s = (max(starts) - min(starts)) * len(starts) / max(1, len(starts) - 1)
    sessions = list(source.sessions)
    for number in range(1, copies):
        order = list(starts)
        chance.shuffle(order)
        for session, start_s in zip(source.sessions, order, strict=True):
            turns = tuple(
                msgspec.structs.replace(turn, runs=own.renamed(turn.runs, number))
                for turn in session.turns
            )
            name = f"{session.name}~{number}"
            sessions.append(Session(name, start_s + number * length_s, turns))
    sessions.sort(key=lambda session: session.start_s)
    note = f"{source.note}; {copies} copies" if source.note else f"{copies} copies"
    return msgspec.structs.replace(source, sessions=tuple(sessions), note=note)


class _Own:
    """Which ids of a workload one session uses alone, and what they are called in a copy."""

    def __init__(self, sessions: Iterable[Session]) -> None:
        steps: dict[int, int] = {}  # id: sessions that use it, less those that use the one before
        top = 0
        for session in sessions:
            for low, high in _ranges(session):
                steps[low] = steps.get(low, 0) + 1
                steps[high] = steps.get(high, 0) - 1
                top = max(top, high)
        self._lows: list[int] = []
        self._highs: list[int] = []
        self._bases: list[int] = []  # id of the range's first block in the first copy
        users = count = previous = 0
        for at in sorted(steps):
            if users == 1:
                self._lows.append(previous)
                self._highs.append(at)
                self._bases.append(top + count)
                count += at - previous
            users += steps[at]
            previous = at
        self._count = count

    def renamed(self, runs: Runs, copy: int) -> Runs:
        """A prompt's runs in a copy (1, 2, ...)."""
        lows, shift = self._lows, (copy - 1) * self._count
        found: list[tuple[int, int]] = []
        for first, count in runs:
            at, end = first, first + count
            while at < end:
                index = bisect_right(lows, at) - 1
                if index >= 0 and at < self._highs[index]:
                    stop = min(end, self._highs[index])
                    found.append((self._bases[index] + at - lows[index] + shift, stop - at))
                else:
                    stop = min(end, lows[index + 1]) if index + 1 < len(lows) else end
                    found.append((at, stop - at))
                at = stop
        return tuple(found)


def _ranges(session: Session) -> list[tuple[int, int]]:
    """The ids that a session uses, as ranges that do not touch, in order."""
    merged: list[tuple[int, int]] = []
    for first, count in sorted({run for turn in session.turns for run in turn.runs}):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], first + count)
        elif count:
            merged.append((first, first + count))
    return merged
