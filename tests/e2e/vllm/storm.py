"""Load during which an engine dies: every request's fate, read from the raw bytes.

Clients ask in a closed loop, most of them streaming, and note what a user would see: the status,
tokens, explicit error events, the end mark, and the longest silence.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

STREAMING_CLIENTS, WHOLE_CLIENTS = 8, 3
TOKENS = 120
DONE = b"[DONE]"


@dataclass
class Fate:
    """What became of one request. Times are seconds of the monotonic clock."""

    started: float
    stream: bool
    status: int = 0
    tokens: int = 0
    errors: int = 0
    done: bool = False
    finish: str = ""
    exception: str = ""
    ended: float = 0.0
    longest_silence_s: float = 0.0

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


async def one(session: aiohttp.ClientSession, url: str, number: int, stream: bool) -> Fate:
    body = {
        "model": "tiny",
        "stream": stream,
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": f"tell number {number} a long story"}],
    }
    fate = Fate(started=time.monotonic(), stream=stream)
    heard = fate.started
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            fate.status = answer.status
            if not stream:
                value = await answer.json()
                fate.finish = value["choices"][0]["finish_reason"] if answer.ok else str(value)
            else:
                async for line in answer.content:
                    now = time.monotonic()
                    fate.longest_silence_s = max(fate.longest_silence_s, now - heard)
                    heard = now
                    if line.startswith(b"data: "):
                        fate.event(line.removeprefix(b"data: ").strip())
    except (aiohttp.ClientError, TimeoutError) as error:
        fate.exception = repr(error)
    fate.ended = time.monotonic()
    fate.longest_silence_s = max(fate.longest_silence_s, fate.ended - heard)
    return fate


async def storm(
    url: str, before_s: float, after_s: float, strike: Callable[[], None]
) -> tuple[list[Fate], float]:
    """Run the clients, strike in the middle; all fates and the moment of the strike."""
    fates: list[Fate] = []
    stop = asyncio.Event()
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def client(number: int, stream: bool) -> None:
            while not stop.is_set():
                fates.append(await one(session, url, number + 100 * len(fates), stream))

        clients = [
            asyncio.create_task(client(number, number < STREAMING_CLIENTS))
            for number in range(STREAMING_CLIENTS + WHOLE_CLIENTS)
        ]
        await asyncio.sleep(before_s)
        struck = time.monotonic()
        await asyncio.to_thread(strike)
        await asyncio.sleep(after_s)
        stop.set()
        await asyncio.gather(*clients)
    return fates, struck
