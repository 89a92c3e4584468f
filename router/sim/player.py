"""Plays a workload against a URL in wall-clock time, `speed` times faster than recorded.

Closed loop within a session: a turn is sent after the previous answer and its think time. Sessions
start at their recorded times. Two forms of prompt:

  completions  the prompt is the text of its block ids: exactly the trace's sharing
  chat         a growing list of messages with the answers that really came back, so that generated
               text is part of the next prompt, as in a chat client

All times of the results are in the replicas' own seconds (wall seconds times speed).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from warmlane.router.sim.client import Client, Reply
from warmlane.router.sim.traces import Session, Turn, Workload
from warmlane.router.sim.workload import Texts

encode = msgspec.json.encode


class Play(msgspec.Struct, frozen=True, kw_only=True):
    """How a workload is played.

    speed: of the replicas' clock against the wall clock. shrink: prompts are that many times
    shorter than recorded; output_shrink: answers likewise. rate: session starts come that many
    times faster. think_cap_s: longest think time.
    """

    model: str
    chat: bool = False
    speed: float = 1.0
    shrink: float = 1.0
    output_shrink: float = 1.0
    rate: float = 1.0
    think_cap_s: float = 10.0
    max_in_flight: int = 256
    timeout_s: float = 120.0


class Result(msgspec.Struct, frozen=True):
    """One request. error: "" or why it counts as failed. Tokens are those of the usage."""

    session: str
    turn: int
    ttft_s: float
    total_s: float
    prompt: int
    cached: int
    output: int
    error: str


class LagMeter:
    """How late the event loop wakes up: the floor of what a wall-clock measurement can resolve."""

    def __init__(self, period_s: float = 0.01) -> None:
        self._period_s = period_s
        self._lags: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> tuple[float, float]:
        """Median and 99th percentile of the lag in wall seconds."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        ordered = sorted(self._lags) or [0.0]
        return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]

    async def _run(self) -> None:
        while True:
            start = time.monotonic()
            await asyncio.sleep(self._period_s)
            self._lags.append(max(0.0, time.monotonic() - start - self._period_s))


async def play(
    workload: Workload,
    url: str | Sequence[str],
    how: Play,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Play it all; the results in order of completion. Failures are results, not exceptions.

    url: of one router, or of several that take requests in turn, whatever their session.
    """
    client = _Turns([url] if isinstance(url, str) else url, how.timeout_s)
    texts = Texts(workload.block_size, how.shrink)
    gate = asyncio.Semaphore(how.max_in_flight)
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        if on_result is not None:
            on_result(result)

    first = min((session.start_s for session in workload.sessions), default=0.0)
    tasks = [
        asyncio.ensure_future(
            _session(session, (session.start_s - first) / how.rate, client, texts, how, gate, note)
        )
        for session in workload.sessions
    ]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await client.close()
    return results


class _Turns:
    """Servers that take requests in turn."""

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        self._clients = [Client(url, timeout_s=timeout_s) for url in urls]
        self._next = 0

    async def request(self, method: str, path: str, body: bytes) -> Reply:
        client = self._clients[self._next]
        self._next = (self._next + 1) % len(self._clients)
        return await client.request(method, path, body)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


async def _session(
    session: Session,
    start_s: float,
    client: _Turns,
    texts: Texts,
    how: Play,
    gate: asyncio.Semaphore,
    note: Callable[[Result], None],
) -> None:
    await asyncio.sleep(start_s / how.speed)
    talk = _Talk(texts) if how.chat else None
    for index, turn in enumerate(session.turns):
        if index:
            await asyncio.sleep(min(turn.think_s, how.think_cap_s) / how.speed)
        body: dict[str, Any] = {
            "model": how.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max(1, round(turn.output / how.output_shrink)),
        }
        if talk is not None:
            path = "/v1/chat/completions"
            body["messages"] = talk.ask(turn)
        else:
            path = "/v1/completions"
            body["prompt"] = texts.prompt(turn).decode("ascii")
        async with gate:
            result, text = await _ask(client, path, encode(body), session.name, index, how.speed)
        note(result)
        if talk is not None:
            talk.hear(text)


async def _ask(
    client: _Turns, path: str, body: bytes, session: str, turn: int, speed: float
) -> tuple[Result, str]:
    start = time.monotonic()
    try:
        reply = await client.request("POST", path, body)
    except (OSError, TimeoutError) as error:
        total_s = (time.monotonic() - start) * speed
        reason = f"{type(error).__name__}: {error}"
        return Result(session, turn, 0.0, total_s, 0, 0, 0, reason), ""
    text, usage, error_text = read_stream(reply)
    details = usage.get("prompt_tokens_details") or {}
    first = reply.first_byte_at or reply.done_at
    result = Result(
        session,
        turn,
        (first - reply.sent_at) * speed,
        (reply.done_at - reply.sent_at) * speed,
        usage.get("prompt_tokens", 0),
        details.get("cached_tokens", 0),
        usage.get("completion_tokens", 0),
        error_text,
    )
    return result, text


def read_stream(reply: Reply) -> tuple[str, dict[str, Any], str]:
    """Text, usage and the reason of failure ("" when all is well) of a streamed answer."""
    if reply.status != 200:
        return "", {}, f"status {reply.status}: {reply.body[:200].decode('utf-8', 'replace')}"
    events = reply.body.split(b"\n\n")
    if b"data: [DONE]" not in events[-2:]:
        return "", {}, "the stream ended without [DONE]"
    parts: list[str] = []
    usage: dict[str, Any] = {}
    reason = None
    for event in events:
        if not event.startswith(b"data: {"):
            continue
        value = msgspec.json.decode(event[6:])
        if "error" in value:
            return "", {}, f"error event: {value['error']}"
        usage = value.get("usage") or usage
        for choice in value.get("choices", ()):
            parts.append(choice.get("text") or choice.get("delta", {}).get("content") or "")
            reason = choice.get("finish_reason") or reason
    if reason not in ("stop", "length"):
        return "", usage, f"finish_reason {reason}"
    return "".join(parts), usage, ""


class _Talk:
    """The messages of one chat, with the answers that came back."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._messages: list[dict[str, str]] = []
        self._used = 0  # tokens of the recorded prompt that are in the messages

    def ask(self, turn: Turn) -> list[dict[str, str]]:
        """The messages of the next request: what is new in the turn's prompt is the user's part."""
        text = self._texts.prompt(turn)
        if not self._messages:
            first = turn.runs[0][1] * self._texts.tokens_per_block * 4
            self._add("system", text[:first])
            self._add("user", text[first:] or b" ...")
        else:
            self._add("user", text[self._used :] or b" ...")
        self._used = len(text)
        return self._messages

    def hear(self, text: str) -> None:
        """The answer joins the chat; as many bytes of the recorded prompt count as said."""
        self._messages.append({"role": "assistant", "content": text})
        self._used += len(text)

    def _add(self, role: str, text: bytes) -> None:
        self._messages.append({"role": role, "content": text.decode("ascii")})
