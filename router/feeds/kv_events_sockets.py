"""One publisher of KV events on the event loop, drained in slices. Floor 5.

The lines speak ZMTP themselves (docs/decisions/0015-own-zmtp.md): a batch goes from the socket's
buffer into the tree on one thread. `Pump` gives each source its turn, so that a flood of events
leaves the loop to requests again after half a millisecond.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

from warmlane.router.config_events import Endpoints
from warmlane.router.exact import ExactView
from warmlane.router.feeds.client import EngineError
from warmlane.router.feeds.kv_events_stream import SLICE_BLOCKS, Stream
from warmlane.router.feeds.zmtp_line import Line

log = logging.getLogger("warmlane.events")

SLICE_S: Final = 0.0005  # of the loop at a time, for all sources together
PAUSE_S: Final = 0.002  # between two sources that are served at once, without a turn in the line
TURN: Final = 32  # messages of one source before the next one has its turn
REPLAYS: Final = 8  # at once: the last 10,000 batches of a large engine are 100 MB
END: Final = b"\xff" * 8

Trouble = EngineError  # where no events can be had from a replica, in one line


class Pump:
    """Gives all sources of a router their turn, `SLICE_S` of the loop at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[Source] = deque()
        self._scheduled = False
        self._at_once = 0.0  # from when on somebody who is alone is served at once
        self.replays = 0  # under way

    def wake(self, source: Source) -> None:
        """It may have messages."""
        if source.queued:
            return
        now = perf_counter()
        if not self._ready and now >= self._at_once:
            self._at_once = now + PAUSE_S
            self.turn(source, now + SLICE_S)
        else:
            self._wait(source)

    def _wait(self, source: Source) -> None:
        source.queued = True
        self._ready.append(source)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def _run(self) -> None:
        self._scheduled = False
        end = perf_counter() + SLICE_S
        while self._ready:
            source = self._ready.popleft()
            source.queued = False
            self.turn(source, end)
            if perf_counter() >= end:
                break
        if self._ready and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)

    def turn(self, source: Source, end: float) -> None:
        """One source's, until `end`; it waits for the next one if it is not done."""
        try:
            more = source.drain(end)
        except Exception:
            log.exception("event=events_bug source=%s", source.where.events)
            more = False  # its tick wakes it again
        if more:
            self._wait(source)


class Source:
    """The lines to one publisher, and the stream that heals what they lose.

    Raises Trouble when its endpoint has to be bound and cannot.
    """

    def __init__(
        self,
        where: Endpoints,
        *,
        bind: bool | None,
        exact: ExactView,
        slot: int,
        pump: Pump,
        clock: Callable[[], float],
    ) -> None:
        self.where = where
        self.queued = False
        self._pump = pump
        self._clock = clock
        self._closed = False
        self._state = 0  # of the line, as the stream was told
        self._dealer: Line | None = None
        self._asked: list[bytes] | None = None  # what the dealer is to send
        self._sub = Line(where.events, b"SUB", bind=bind, wake=self._wake, clock=clock)
        self.stream = Stream(exact, slot, replay=bool(where.replay), now=clock())

    @property
    def bound(self) -> bool:
        """The publisher connects to us."""
        return self._sub.bound

    def _wake(self) -> None:
        self._pump.wake(self)

    def close(self) -> None:
        self._closed = True
        self._end_replay()
        self._sub.close()

    def tick(self) -> None:
        """Time limits; every half second or so."""
        now = self._clock()
        self.stream.tick(now)
        self._sub.tick(now)
        if self._dealer is not None:
            self._dealer.tick(now)
        self._pump.wake(self)

    def drain(self, end: float) -> bool:
        """Take messages until `end` or the next source's turn. True: more may be there."""
        now, stream = self._clock(), self.stream
        if self._closed:
            return False
        if self._dealer is not None:
            self._dealer.read_ahead(now)
        self._sub.drained = False
        for _ in range(TURN):
            straight = self._straight(now) if stream.calm and self._dealer is None else False
            if straight is None:
                return False
            if straight:
                pass
            elif stream.busy:
                stream.step(now)
            elif not (self._hear_replay(now) or self._hear_batch(now)):
                return self._ask()
            if stream.ask is not None or self._dealer is not None:
                self._ask()
            if perf_counter() >= end:
                break
        return True

    def _ask(self) -> bool:
        """Ask for the replay that the stream wants. True: look for its answer."""
        start, stream = self.stream.ask, self.stream
        if start is None:
            if stream.live and self._dealer is not None:
                self._end_replay()
            return False
        self._end_replay()  # a line of its own: late answers of another attempt go with theirs
        if self._pump.replays >= REPLAYS:
            return False  # the next tick tries again
        stream.asked(self._clock())
        self._pump.replays += 1
        self._asked = [b"", start.to_bytes(8, "big")]
        self._dealer = Line(
            self.where.replay, b"DEALER", bind=False, wake=self._wake, clock=self._clock, once=True
        )
        return True

    def _end_replay(self) -> None:
        if self._dealer is not None:
            self._dealer.close()
            self._dealer = None
            self._pump.replays -= 1

    def _hear_replay(self, now: float) -> bool:
        line = self._dealer
        if line is None:
            return False
        frames = line.take(now)
        if self._asked is not None and line.up:
            line.send(self._asked)
            self._asked = None
        if frames is None:
            return False
        # [empty, seq, payload] up to vLLM 0.25, [empty, topic, seq, payload] since.
        if len(frames) < 3 or len(frames[-2]) != 8:
            self.stream.counts["malformed"] += 1
        elif frames[-2] == END:
            self.stream.ended(now)
        else:
            self.stream.replayed(int.from_bytes(frames[-2], "big"), frames[-1], now)
        return True

    def _hear_batch(self, now: float) -> bool:
        line = self._sub
        frames = line.take(now)
        if line.state != self._state:
            self._news(line.state, now)
        if frames is None:
            return False
        if len(frames) == 3 and len(frames[1]) == 8:
            self.stream.batch(int.from_bytes(frames[1], "big"), frames[2], now)
        else:
            self.stream.counts["malformed"] += 1
        return True

    def _straight(self, now: float) -> bool | None:
        """The common case: batches of a trusted stream. None: nothing waits, False: something else
        does."""
        stream, line = self.stream, self._sub
        zmtp = line.zmtp
        if zmtp is None or stream.intake is None or line.state != self._state:
            return False
        if not zmtp.waiting and not line.fetch(now):
            return None if line.state == self._state else False
        assert stream.expected is not None
        count, flags = zmtp.apply(stream.intake, stream.slot, stream.expected, SLICE_BLOCKS)
        if count:
            stream.applied(count, zmtp.last or b"", flags)
        return count > 0

    def _news(self, state: int, now: float) -> None:
        """Connections made and broken since the stream was last told."""
        while self._state != state:
            self._state += 1
            if self._state & 1:
                self.stream.connected(now)
            else:
                self.stream.disconnected()
