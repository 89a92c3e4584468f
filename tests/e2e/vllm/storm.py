"""Load during which an engine dies, and whose fault each silence was.

Clients ask in a closed loop, most of them streaming, and note what a user would see: the status,
tokens, explicit error events, the end mark, and when. `waits` holds that against what the taps
(`tap`) saw of the engines, so that what is left is the router's own doing. An engine that starves
on a busy machine takes no part in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp

from .router import Router
from .tap import Tap, Wire

STREAMING_CLIENTS, WHOLE_CLIENTS = 3, 2
STREAM_TOKENS, WHOLE_TOKENS = 1200, 64  # long enough to be struck in the middle
YOUNG_EVENTS = STREAM_TOKENS // 4
PATIENCE_S = 240  # with engines that starve; the router's part is judged without it
DONE = b"[DONE]"


@dataclass
class Fate:
    """What became of one request. Times are seconds of the monotonic clock."""

    request: str
    started: float
    stream: bool
    replica: str = ""
    status: int = 0
    tokens: int = 0
    errors: int = 0
    done: bool = False
    finish: str = ""
    exception: str = ""
    left: bool = False  # the client had seen enough and went
    ended: float = 0.0
    events: list[float] = field(default_factory=list)  # when the n-th event came

    @property
    def whole(self) -> bool:
        """It ended as if nothing had happened."""
        clean = self.status == 200 and not self.errors and not self.exception
        return clean and self.finish in ("stop", "length") and (self.done or not self.stream)

    @property
    def broken(self) -> bool:
        """It had begun, and ended with one explicit error and no end mark."""
        told = self.errors == 1 and not self.done and not self.exception
        return self.status == 200 and self.tokens > 0 and told

    def event(self, data: bytes) -> None:
        """Take one `data:` line of the stream."""
        self.events.append(time.monotonic())
        if data == DONE:
            self.done = True
            return
        value = json.loads(data)
        if "error" in value:
            self.errors += 1
        for choice in value.get("choices", ()):
            self.tokens += bool(choice["delta"].get("content"))
            self.finish = choice.get("finish_reason") or self.finish


@dataclass
class Wait:
    """A time during which the router owed something. what: relay | start | move | end."""

    what: str
    since: float
    until: float
    dropped: bool = False  # the router gave the engine up: its own time-out is part of it

    @property
    def seconds(self) -> float:
        return self.until - self.since


class Hunger:
    """How long the router and the clients were ready to run and got no core: the machine's doing.

    From the kernel's count of each thread's wait in the run queue (/proc/PID/schedstat, second
    number, nanoseconds), which goes on counting while nobody looks.
    """

    def __init__(self, router_pid: int, taps: Sequence[Tap]) -> None:
        own = Path("/proc/self/task")
        threads = [os.getpid(), *(tap.thread_id for tap in taps)]
        self._files = [own / str(thread) / "schedstat" for thread in threads]
        self._files.append(Path(f"/proc/{router_pid}/schedstat"))
        self._seen: list[tuple[float, float]] = []

    def look(self) -> None:
        waited = 0.0
        for file in self._files:
            with contextlib.suppress(OSError):  # a kernel that does not tell
                waited += int(file.read_text().split()[1]) / 1e9
        self._seen.append((time.monotonic(), waited))

    def within(self, since: float, until: float) -> float:
        """Seconds between the looks around this interval."""
        before = [waited for at, waited in self._seen if at <= since]
        after = [waited for at, waited in self._seen if at >= until]
        start = before[-1] if before else self._seen[0][1]
        return (after[0] if after else self._seen[-1][1]) - start


@dataclass
class Storm:
    """Everything that happened."""

    fates: list[Fate]
    wires: dict[str, list[Wire]]  # by request, in the order of sending
    victim: Tap
    dead: float  # when the blow had fallen
    hunger: Hunger

    @property
    def moved(self) -> list[Fate]:
        """Answered whole although their first engine failed them."""
        return [fate for fate in self.fates if fate.whole and len(self.wires[fate.request]) > 1]

    def waits(self, fate: Fate) -> list[Wait]:
        """What the client of this request waited for the router."""
        wires = self.wires.get(fate.request, [])
        if not wires:
            return [Wait("start", fate.started, fate.ended)]
        found = [Wait("start", fate.started, wires[0].sent)]
        for failed, then in pairwise(wires):
            found.append(Wait("move", failed.last, then.sent, failed.dropped))
        last = wires[-1]
        # The router may hold the first event, which carries no token, until the second is there.
        begin = last.events[1] if len(last.events) > 1 else 0.0
        for came, seen in zip(last.events, fate.events, strict=False):
            found.append(Wait("relay", max(came, begin), seen))
        if not fate.left:
            found.append(Wait("end", last.last, fate.ended, last.dropped))
        return found


async def one(session: aiohttp.ClientSession, url: str, fate: Fate) -> None:
    stream = fate.stream
    body = {
        "model": "tiny",
        "stream": stream,
        "max_tokens": STREAM_TOKENS if stream else WHOLE_TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"tell number {fate.request} a long story"}],
    }
    named = {"x-request-id": fate.request}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=named) as answer:
            fate.status = answer.status
            fate.replica = answer.headers.get("x-warmlane-replica", "")
            if not stream:
                value = await answer.json()
                fate.finish = value["choices"][0]["finish_reason"] if answer.ok else str(value)
            else:
                async for line in answer.content:
                    if line.startswith(b"data: "):
                        fate.event(line.removeprefix(b"data: ").strip())
    except (aiohttp.ClientError, TimeoutError) as error:
        fate.exception = repr(error)
    except asyncio.CancelledError:
        fate.left = True
        raise
    finally:
        fate.ended = time.monotonic()


def vulnerable(fates: Sequence[Fate], taps: Sequence[Tap]) -> Tap | None:
    """An engine that has both a stream with most of it to come and a request without any byte.

    How far it is says its tap: the clients may lag behind by seconds on a busy machine.
    """
    by_name = {fate.request: fate for fate in fates}
    for tap in taps:
        open_ = [
            (by_name[w.request], w) for w in list(tap.wires) if w.request in by_name and w.open
        ]
        begun = any(fate.tokens and len(wire.events) < YOUNG_EVENTS for fate, wire in open_)
        if begun and any(not wire.heard and not fate.stream for fate, wire in open_):
            return tap
    return None


def enough(fates: Sequence[Fate], victim: Tap, dead: float) -> bool:
    """All that was on the victim has ended, and something that came later did well."""
    touched = {wire.request for wire in list(victim.wires) if wire.request}
    ended = all(fate.ended for fate in fates if fate.request in touched)
    return ended and any(fate.whole and fate.started > dead for fate in fates)


async def storm(
    router: Router,
    taps: Sequence[Tap],
    before_s: float,
    after_s: float,
    strike: Callable[[Tap], Callable[[], None]],
) -> Storm:
    """Run the clients, strike an engine that is in the midst of it, and run on for a while.

    strike: deals the blow and returns what waits for its effect.
    """
    fates: list[Fate] = []
    hunger = Hunger(router.process.pid, taps)
    stop = asyncio.Event()
    for tap in taps:
        tap.wires.clear()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:

        async def client(stream: bool) -> None:
            while not stop.is_set():
                fate = Fate(f"storm-{len(fates)}", time.monotonic(), stream)
                fates.append(fate)
                await one(session, router.url, fate)

        async def watch() -> None:
            while not stop.is_set():
                hunger.look()
                await asyncio.sleep(0.05)

        clients = [
            asyncio.create_task(client(number < STREAMING_CLIENTS))
            for number in range(STREAMING_CLIENTS + WHOLE_CLIENTS)
        ]
        clients.append(asyncio.create_task(watch()))
        await asyncio.sleep(before_s)
        patience = time.monotonic() + PATIENCE_S
        while (victim := vulnerable(fates, taps)) is None:
            assert time.monotonic() < patience, "no engine has both kinds of requests at once"
            await asyncio.sleep(0.005)
        struck = strike(victim)  # here and now: its stream would end by itself soon
        await asyncio.to_thread(struck)
        patience = time.monotonic() + PATIENCE_S
        dead = time.monotonic()  # not before: on a busy machine a process takes seconds to die
        await asyncio.sleep(after_s)
        stop.set()
        while not enough(fates, victim, dead):
            assert time.monotonic() < patience, "what the victim had does not end"
            await asyncio.sleep(0.05)
        for task in clients:
            task.cancel()
        for result in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(result, Exception):  # not the cancellation
                raise result
    hunger.look()
    wires: dict[str, list[Wire]] = {fate.request: [] for fate in fates}
    for wire in sorted((wire for tap in taps for wire in tap.wires), key=lambda wire: wire.sent):
        if wire.request in wires:
            wires[wire.request].append(wire)
    return Storm(fates, wires, victim, dead, hunger)
