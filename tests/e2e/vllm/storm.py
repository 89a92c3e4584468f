"""Load during which an engine dies: every request's fate, read from the raw bytes.

Clients ask in a closed loop, most of them streaming, and note what a user would see: the status,
tokens, explicit error events, the end mark, and the longest silence.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

STREAMING_CLIENTS, WHOLE_CLIENTS = 3, 1  # one engine alone still answers quickly
STREAM_TOKENS, WHOLE_TOKENS = 1200, 16  # long enough to be struck in the middle
DONE = b"[DONE]"


@dataclass
class Fate:
    """What became of one request. Times are seconds of the monotonic clock."""

    started: float
    stream: bool
    replica: str = ""
    status: int = 0
    tokens: int = 0
    errors: int = 0
    done: bool = False
    finish: str = ""
    exception: str = ""
    ended: float = 0.0
    silences: list[tuple[float, float]] = field(default_factory=list)  # end, seconds

    def hear(self, now: float) -> None:
        """Bytes came, or the end."""
        last = self.silences[-1][0] if self.silences else self.started
        self.silences.append((now, now - last))

    def silence_after(self, moment: float) -> float:
        """The longest silence that lasted past this moment, its part before not counted."""
        return max(
            (min(end - moment, gap) for end, gap in self.silences if end > moment), default=0.0
        )

    def silence_before(self, moment: float) -> float:
        """The longest silence that ended before this moment."""
        return max((gap for end, gap in self.silences if end <= moment), default=0.0)

    def pace(self, moment: float) -> float:
        """The longest silence of the engines' own making: before the moment, or, of a request
        that began after it and ended well, at any time."""
        if self.started > moment:
            return max((gap for _, gap in self.silences), default=0.0) if self.whole else 0.0
        return self.silence_before(moment)

    @property
    def young(self) -> bool:
        """It streams and has most of its answer before it."""
        return not self.ended and 0 < self.tokens < STREAM_TOKENS / 4

    @property
    def whole(self) -> bool:
        """It ended as if nothing had happened."""
        clean = self.status == 200 and not self.errors and not self.exception
        return clean and self.finish in ("stop", "length") and (self.done or not self.stream)

    @property
    def broken(self) -> bool:
        """It had begun, and ended with one explicit error and no end mark."""
        return self.status == 200 and self.tokens > 0 and self.errors == 1 and not self.done

    def event(self, data: bytes) -> None:
        """Take one `data:` line of the stream."""
        if data == DONE:
            self.done = True
            return
        value = json.loads(data)
        if "error" in value:
            self.errors += 1
        for choice in value.get("choices", ()):
            self.tokens += bool(choice["delta"].get("content"))
            self.finish = choice.get("finish_reason") or self.finish


async def one(session: aiohttp.ClientSession, url: str, number: int, fate: Fate) -> None:
    stream = fate.stream
    body = {
        "model": "tiny",
        "stream": stream,
        "max_tokens": STREAM_TOKENS if stream else WHOLE_TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"tell number {number} a long story"}],
    }
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            fate.status = answer.status
            fate.replica = answer.headers.get("x-warmlane-replica", "")
            if not stream:
                value = await answer.json()
                fate.finish = value["choices"][0]["finish_reason"] if answer.ok else str(value)
            else:
                async for line in answer.content:
                    fate.hear(time.monotonic())
                    if line.startswith(b"data: "):
                        fate.event(line.removeprefix(b"data: ").strip())
    except (aiohttp.ClientError, TimeoutError) as error:
        fate.exception = repr(error)
    fate.ended = time.monotonic()
    fate.hear(fate.ended)


async def storm(
    url: str, before_s: float, after_s: float, strike: Callable[[str], None]
) -> tuple[list[Fate], float]:
    """Run the clients, strike a replica (by name) while it streams; all fates, the moment of death.

    Which one is not said before: on a busy machine a replica may be left alone for a while.
    """
    fates: list[Fate] = []
    stop = asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def client(number: int, stream: bool) -> None:
            while not stop.is_set():
                fate = Fate(started=time.monotonic(), stream=stream)
                fates.append(fate)
                await one(session, url, number + 100 * len(fates), fate)

        clients = [
            asyncio.create_task(client(number, number < STREAMING_CLIENTS))
            for number in range(STREAMING_CLIENTS + WHOLE_CLIENTS)
        ]
        await asyncio.sleep(before_s)
        patience = time.monotonic() + 20
        while not (begun := [fate.replica for fate in fates if fate.young and fate.replica]):
            assert time.monotonic() < patience, "no replica streams"
            await asyncio.sleep(0.01)
        await asyncio.to_thread(strike, begun[0])
        dead = time.monotonic()  # not before: on a busy machine a process takes seconds to die
        await asyncio.sleep(after_s)
        stop.set()
        await asyncio.gather(*clients)
    return fates, dead
