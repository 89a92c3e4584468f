"""A fake engine on a real socket, and the few calls that its tests make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from warmlane.router.sim.server import FakeEngine, FakeOptions

SPEED = 50.0


@asynccontextmanager
async def fake(**options: Any) -> AsyncIterator[tuple[FakeEngine, aiohttp.ClientSession]]:
    """A running replica and a client session whose paths start at it."""
    engine = FakeEngine(FakeOptions(**{"speed": SPEED, **options}))
    await engine.start()
    try:
        async with aiohttp.ClientSession(engine.url) as session:
            yield engine, session
    finally:
        await engine.close()


async def post(session: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, Any]:
    async with session.post(path, json=body) as answer:
        text = await answer.text()
        return answer.status, json.loads(text) if text[:1] in ("{", "[") else text


async def stream(session: aiohttp.ClientSession, path: str, **body: Any) -> list[Any]:
    """The events of a stream; the end marker as the string [DONE]."""
    async with session.post(path, json={**body, "stream": True}) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = await answer.text()
    events = [line[6:] for line in text.split("\n\n") if line]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


async def running(engine: FakeEngine) -> None:
    """Wait until a request is in the batch."""
    for _ in range(500):
        if engine.engine.running:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing runs")


async def metric(session: aiohttp.ClientSession, name: str) -> float:
    async with session.get("/metrics") as answer:
        page = await answer.text()
    values = [line.rsplit(" ", 1)[1] for line in page.splitlines() if line.startswith(name + "{")]
    return sum(map(float, values))
