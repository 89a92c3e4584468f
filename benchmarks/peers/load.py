"""The load: closed-loop clients on keep-alive connections, unique chat bodies, answers checked.

A body is one of FAMILIES shared beginnings (three quarters of the size) and an ending of its own,
so a prefix index has something to find and something to store. Every contender gets bodies made by
the same rule; no body is ever sent twice in a run. Anything but a 200 with a whole body ends the
run: error answers are fast and would flatter.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import httptools

from benchmarks.peers.backend import MODEL

FAMILIES = 64
PATH = "/v1/chat/completions"


class BadAnswerError(Exception):
    """A contender answered something else than a whole 200."""


class Bodies:
    """Endless unique requests of one size, as bytes ready to send."""

    def __init__(self, size: int, *, stream: bool = False, seed: int = 1) -> None:
        rng = random.Random(seed)
        words = [
            "".join(rng.choices("abcdefghiklmnoprstuw", k=rng.randint(2, 9))) for _ in range(4000)
        ]
        self._shared = [self._text(rng, words, size * 3 // 4) for _ in range(FAMILIES)]
        self._own = [self._text(rng, words, size // 4) for _ in range(FAMILIES)]
        self._size = size
        self._stream = b"true" if stream else b"false"
        self._count = itertools.count(1)

    @staticmethod
    def _text(rng: random.Random, words: list[str], size: int) -> bytes:
        text = " ".join(rng.choices(words, k=size // 3))
        return text[:size].encode()

    def __iter__(self) -> Iterator[bytes]:
        for number in self._count:
            shared = self._shared[number * 7 % FAMILIES]
            own = self._own[number * 13 % FAMILIES]
            body = (
                b'{"model":"%s","stream":%s,"max_tokens":16,"messages":[{"role":"system","content":"%s'
                b'"},{"role":"user","content":"%012d %s"}]}'
                % (MODEL.encode(), self._stream, shared, number, own)
            )
            spare = len(body) - self._size
            if spare > 0:
                body = body[: -4 - spare] + b'"}]}'
            yield self._head(len(body)) + body

    @staticmethod
    def _head(size: int) -> bytes:
        return (
            b"POST %s HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\naccept: */*\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % (PATH.encode(), size)
        )


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered, until it has to rest or stop."""

    def __init__(self, bodies: Iterator[bytes], done: asyncio.Future[None], asking: bool) -> None:
        self._bodies = bodies
        self._done = done
        self._asking = asking
        self._rested: asyncio.Future[None] | None = None
        self.answered = 0
        self.stopping = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if self._asking:
            self._ask()

    def _ask(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(next(self._bodies))

    def resume(self) -> None:
        """Ask, and go on asking."""
        self._asking, self._rested = True, None
        self._ask()

    def rest(self) -> asyncio.Future[None]:
        """Ask no more; done when the request under way is answered."""
        self._asking = False
        self._rested = asyncio.get_running_loop().create_future()
        return self._rested

    def stop(self) -> None:
        """Close: now if nothing is under way, else behind its answer."""
        self.stopping = True
        if not self._asking:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._fail(f"status {status}")
            return
        self.answered += 1
        if self.stopping:
            self._transport.close()
        elif not self._parser.should_keep_alive():
            self._fail("the connection was not kept alive")
        elif self._asking:
            self._ask()
        elif self._rested is not None:
            self._rested.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            if self.stopping:
                self._done.set_result(None)
            else:
                self._done.set_exception(BadAnswerError(f"connection lost: {exc}"))

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(BadAnswerError(why))
        self._transport.abort()


class Load:
    """`connections` clients against one port; count the answers between `start` and `stop`."""

    def __init__(self, port: int, connections: int, bodies: Bodies) -> None:
        self._port = port
        self._connections = connections
        self._bodies = iter(bodies)
        self._clients: list[Client] = []
        self._ends: list[asyncio.Future[None]] = []

    async def start(self, *, asking: bool = True) -> None:
        """Connect. asking: and ask at once; else nothing is sent before `burst`."""
        loop = asyncio.get_running_loop()
        for _ in range(self._connections):
            end: asyncio.Future[None] = loop.create_future()
            _, client = await loop.create_connection(
                partial(Client, self._bodies, end, asking), "127.0.0.1", self._port
            )
            self._clients.append(client)
            self._ends.append(end)

    @property
    def answered(self) -> int:
        return sum(client.answered for client in self._clients)

    async def run_for(self, seconds: float) -> None:
        """Let it run; a bad answer on any connection is raised here."""
        await asyncio.wait(self._ends, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for end in self._ends:
            if end.done():
                end.result()

    async def burst(self, seconds: float) -> int:
        """Ask for so long, then wait for what is under way; the number of answers.

        Nothing is in flight before or behind it: all that was asked in it was answered in it.
        """
        before = self.answered
        for client in self._clients:
            client.resume()
        await self.run_for(seconds)
        rested = asyncio.gather(*(client.rest() for client in self._clients))
        ends: list[asyncio.Future[Any]] = [*self._ends, rested]
        await asyncio.wait(ends, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        for end in self._ends:
            if end.done():
                end.result()
        if not rested.done():
            raise BadAnswerError("a request was not answered within 30 s")
        return self.answered - before

    async def stop(self) -> None:
        for client in self._clients:
            client.stop()
        await asyncio.wait_for(asyncio.gather(*self._ends), timeout=30)


class FirstToken(asyncio.Protocol):
    """One connection, one stream at a time: seconds from the request to its first event."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    async def ask(self, request: bytes) -> float:
        self._first: float | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._end: asyncio.Future[None] = self._loop.create_future()
        if self._lost:
            raise BadAnswerError("connection lost between two streams")
        start = time.perf_counter()
        self._transport.write(request)
        await asyncio.wait_for(self._end, timeout=10)
        if self._first is None:
            raise BadAnswerError("a stream without an event")
        return self._first - start

    def data_received(self, data: bytes) -> None:
        if self._first is None and b"data: " in data:
            self._first = time.perf_counter()
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() == 200:
            self._end.set_result(None)
        else:
            self._end.set_exception(BadAnswerError(f"status {self._parser.get_status_code()}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if hasattr(self, "_end") and not self._end.done():
            self._end.set_exception(BadAnswerError(f"connection lost: {exc}"))

    def close(self) -> None:
        self._transport.close()


async def first_token_times(
    ports: list[int], bodies: Bodies, rounds: int
) -> dict[int, list[float]]:
    """Seconds to the first event per port, the ports taken in turns, one request in flight."""
    loop = asyncio.get_running_loop()
    clients = [
        (port, (await loop.create_connection(FirstToken, "127.0.0.1", port))[1]) for port in ports
    ]
    times: dict[int, list[float]] = {port: [] for port in ports}
    requests = iter(bodies)
    for number in range(rounds):
        for port, client in clients if number % 2 else clients[::-1]:
            times[port].append(await client.ask(next(requests)))
    for _, client in clients:
        client.close()
    return times
