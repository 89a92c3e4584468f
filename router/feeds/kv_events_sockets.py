"""The sockets of one publisher of KV events, drained in slices. Floor 5.

Not `zmq.asyncio`, which costs three times as much a message: the sockets' descriptors are on the
loop, and `Pump` gives each source its turn, so that a flood of events leaves the loop to requests
again after half a millisecond.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

import zmq
from zmq.backend import Socket as CoreSocket
from zmq.utils.monitor import parse_monitor_message

from warmlane.router.config_events import Endpoints
from warmlane.router.exact import ExactView
from warmlane.router.feeds.client import EngineError
from warmlane.router.feeds.kv_events_stream import Stream

log = logging.getLogger("warmlane.events")

SLICE_S: Final = 0.0005  # of the loop at a time, for all sources together
TURN: Final = 32  # messages of one source before the next one has its turn
# Messages that wait here; beyond that they wait at the publisher, whose own mark is 100,000.
HIGH_WATER: Final = 1_000
# A replay has to find room as a whole: what finds none is dropped without a word by the engine.
REPLAY_HIGH_WATER: Final = 100_000
REPLAYS: Final = 8  # at once: the last 10,000 batches of a large engine are 100 MB
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
END: Final = b"\xff" * 8
_MONITORED: Final = zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED

_NOBLOCK: Final = int(zmq.NOBLOCK)
_RCVMORE: Final = int(zmq.RCVMORE)
_option: Final = CoreSocket.get  # without the enumerations of the class above it

Trouble = EngineError  # where no events can be had from a replica, in one line


class Pump:
    """Gives all sources of a router their turn, `SLICE_S` of the loop at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: deque[Source] = deque()
        self._scheduled = False
        self.replays = 0  # under way

    def wake(self, source: Source) -> None:
        """It may have messages."""
        if not source.queued:
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
            try:
                more = source.drain(end)
            except Exception:
                log.exception("event=events_bug source=%s", source.where.events)
                more = False  # its tick wakes it again
            if more:
                self.wake(source)
            if perf_counter() >= end:
                break
        if self._ready and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._run)


class Source:
    """The sockets of one publisher, and the stream that heals what they lose.

    Raises Trouble when its endpoint can neither be bound nor connected to.
    """

    def __init__(
        self,
        where: Endpoints,
        *,
        bind: bool | None,
        exact: ExactView,
        slot: int,
        context: zmq.Context[zmq.Socket[bytes]],
        pump: Pump,
        clock: Callable[[], float],
    ) -> None:
        self.where = where
        self.queued = False
        self._context = context
        self._pump = pump
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._dealer: zmq.Socket[bytes] | None = None
        self._sub: zmq.Socket[bytes] = context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._sub.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._sub.setsockopt(zmq.LINGER, 0)
        self._sub.setsockopt(zmq.IPV6, 1)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)  # ms
        self._sub.subscribe(b"")
        self._monitor = self._sub.get_monitor_socket(_MONITORED)
        try:
            self.bound = self._attach(bind)
        except zmq.ZMQError as error:
            self._close_sub()
            raise Trouble(f"{where.events}: {error}") from error
        self.stream = Stream(exact, slot, replay=bool(where.replay), now=clock())
        self.malformed = 0
        self._news = True  # of the connection
        self._loop.add_reader(self._sub.fileno(), pump.wake, self)
        self._loop.add_reader(self._monitor.fileno(), self._on_news)
        pump.wake(self)  # descriptors are edge-triggered: look once without a signal

    def _attach(self, bind: bool | None) -> bool:
        """True: bound. `bind` None: whichever works, see `Found`."""
        if bind is not False:
            try:
                self._sub.bind(self.where.events)
                return True
            except zmq.ZMQError:
                if bind:
                    raise
        self._sub.connect(self.where.events)
        return False

    def close(self) -> None:
        self._end_replay()
        for socket in (self._sub, self._monitor):
            self._loop.remove_reader(socket.fileno())
        self._close_sub()

    def _close_sub(self) -> None:
        self._sub.disable_monitor()
        self._monitor.close(linger=0)
        self._sub.close(linger=0)

    def _on_news(self) -> None:
        self._news = True
        self._pump.wake(self)

    def tick(self) -> None:
        """Time limits; every half second or so."""
        self.stream.tick(self._clock())
        self._pump.wake(self)

    def drain(self, end: float) -> bool:
        """Take messages until `end` or the next source's turn. True: more may be there."""
        now, stream = self._clock(), self.stream
        if self._sub.closed:
            return False
        while self._news:
            self._news = self._hear_monitor(now)
        for _ in range(TURN):
            if stream.busy:
                stream.step(now)
            elif not (self._hear_replay(now) or self._hear_batch(now)):
                return self._ask()
            if stream.ask is not None or self._dealer is not None:
                self._ask()
            if perf_counter() >= end:
                break
        return True

    def _ask(self) -> bool:
        """Ask for the replay that the stream wants. True: something was sent."""
        start, stream = self.stream.ask, self.stream
        if start is None:
            if stream.live and self._dealer is not None:
                self._end_replay()
            return False
        self._end_replay()  # a socket of its own: late answers of another attempt go with theirs
        if self._pump.replays >= REPLAYS:
            return False  # the next tick tries again
        stream.asked(self._clock())
        self._pump.replays += 1
        self._dealer = dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVHWM, REPLAY_HIGH_WATER)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IPV6, 1)
        dealer.connect(self.where.replay)
        self._loop.add_reader(dealer.fileno(), self._pump.wake, self)
        dealer.send_multipart([b"", start.to_bytes(8, "big")], zmq.NOBLOCK)
        return True

    def _end_replay(self) -> None:
        if self._dealer is not None:
            self._loop.remove_reader(self._dealer.fileno())
            self._dealer.close()
            self._dealer = None
            self._pump.replays -= 1

    def _hear_replay(self, now: float) -> bool:
        if self._dealer is None:
            return False
        try:
            frames = self._dealer.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        # [empty, seq, payload] up to vLLM 0.25, [empty, topic, seq, payload] since.
        if len(frames) < 3 or len(frames[-2]) != 8:
            self.malformed += 1
        elif frames[-2] == END:
            self.stream.ended(now)
        else:
            self.stream.replayed(int.from_bytes(frames[-2], "big"), frames[-1], now)
        return True

    def _hear_batch(self, now: float) -> bool:
        # Three plain calls with plain integers: recv_multipart asks after each part whether there
        # is another, and each option that is asked for by its enumeration costs as much as a part.
        # Messages of fewer parts shift what is read here, and the length of the number tells.
        receive, number, payload = self._sub.recv, b"", b""
        try:
            receive(_NOBLOCK)
        except zmq.Again:
            return False
        try:
            number, payload = receive(_NOBLOCK), receive(_NOBLOCK)
        except zmq.Again:
            pass  # a message of one part, and no other behind it
        if len(number) == 8 and not _option(self._sub, _RCVMORE):
            self.stream.batch(int.from_bytes(number, "big"), payload, now)
            return True
        self.malformed += 1
        while _option(self._sub, _RCVMORE):
            receive(_NOBLOCK)
        return True

    def _hear_monitor(self, now: float) -> bool:
        try:
            frames = self._monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False
        event = parse_monitor_message(frames)["event"]
        if event == zmq.Event.DISCONNECTED:
            self.stream.disconnected()
        elif event == zmq.Event.HANDSHAKE_SUCCEEDED:
            self.stream.connected(now)
        return True
