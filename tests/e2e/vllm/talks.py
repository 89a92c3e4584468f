"""Conversations whose every request is written down: predicted here, cached there.

Chats and completions, base model and adapters, with and without a salt, over a few shared
beginnings; each grows turn by turn. The prediction is the router's (`x-warmlane-hit-tokens`, the
hit on the replica that answered, at decision time), the truth the engine's (`cached_tokens`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

WORDS = "river stone lamp paper north window seven copper garden table".split()  # noqa: SIM905
ADAPTERS = ("", "lora-0", "lora-1")
SALTS = ("", "left", "right")
BEGINNINGS, BEGIN_WORDS, TURN_WORDS, ANSWER_TOKENS = 4, 34, 9, 12
TIMEOUT_S = 60.0


@dataclass
class Asked:
    """One request. sent, done: seconds of the epoch, as in the engines' events."""

    phase: str
    talk: str
    adapter: str
    salt: str
    sent: float
    done: float = 0.0
    status: int = 0
    replica: str = ""
    view: str = ""
    predicted: int = 0
    cached: int | None = None  # None: the engine told none, so there is no truth
    ids: list[int] = field(default_factory=list)

    @property
    def error(self) -> int:
        """Tokens predicted beyond the truth; negative: fewer."""
        assert self.cached is not None
        return self.predicted - self.cached


def prose(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + str(rng.randrange(100)) for _ in range(words))


class Talk:
    """One conversation; `body` is its next request, `answered` makes the one after it."""

    def __init__(self, number: int, rng: random.Random, beginning: str) -> None:
        self.name = f"talk-{number}"
        self.adapter = ADAPTERS[number % 3]
        self.salt = SALTS[number // 3 % 3]
        self.is_chat = number % 2 == 0
        self._rng = rng
        self._text = beginning + "\n"
        self._messages = [{"role": "system", "content": beginning}]
        self.turns = 0
        self._ask()

    def _ask(self) -> None:
        said = prose(self._rng, TURN_WORDS)
        self._text += said
        self._messages.append({"role": "user", "content": said})

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        made: dict[str, Any] = {"model": self.adapter or "tiny", "max_tokens": ANSWER_TOKENS}
        made |= {"temperature": 0, "return_token_ids": True}
        if self.salt:
            made["cache_salt"] = self.salt
        what = {"messages": self._messages} if self.is_chat else {"prompt": self._text}
        return made | what

    def answered(self, text: str) -> None:
        self.turns += 1
        self._text += text + "\n"
        self._messages.append({"role": "assistant", "content": text})
        self._ask()


def talks(count: int, seed: int) -> list[Talk]:
    """Conversations over the same few beginnings."""
    rng = random.Random(seed)
    begins = [prose(rng, BEGIN_WORDS) for _ in range(BEGINNINGS)]
    return [Talk(n, random.Random(seed * 1000 + n), begins[n % BEGINNINGS]) for n in range(count)]


class Asker:
    """Sends turns to one base URL and keeps what became of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[Asked] = []

    async def turn(
        self, client: aiohttp.ClientSession, phase: str, talk: Talk, *, go_on: bool = True
    ) -> Asked:
        """One request; go_on: the talk continues with its answer."""
        found = Asked(phase, talk.name, talk.adapter, talk.salt, time.time())
        self.asked.append(found)
        async with client.post(self.url + talk.path, json=talk.body) as answer:
            body = await answer.json()
            found.done, found.status = time.time(), answer.status
            assert answer.status == 200, body
            found.replica = answer.headers["x-warmlane-replica"]
            found.view = answer.headers["x-warmlane-view"]
            found.predicted = int(answer.headers["x-warmlane-hit-tokens"])
        found.cached = (body["usage"].get("prompt_tokens_details") or {}).get("cached_tokens")
        choice = body["choices"][0]
        found.ids = body.get("prompt_token_ids") or choice.get("prompt_token_ids") or []
        assert len(found.ids) == body["usage"]["prompt_tokens"]
        if go_on:
            talk.answered(choice["message"]["content"] if talk.is_chat else choice["text"])
        return found

    async def _all(self, phase: str, some: Sequence[Talk], turns: int, at_once: int) -> None:
        waiting = [talk for talk in some for _ in range(turns)]
        random.Random(phase).shuffle(waiting)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        locks = {talk.name: asyncio.Lock() for talk in some}
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as client:

            async def work() -> None:
                while waiting:
                    talk = waiting.pop()
                    async with locks[talk.name]:
                        await self.turn(client, phase, talk)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(at_once):
                    tasks.create_task(work())

    def play(self, phase: str, some: Sequence[Talk], turns: int, at_once: int) -> list[Asked]:
        """`turns` of each, so many at a time; the requests in the order they were sent."""
        before = len(self.asked)
        asyncio.run(self._all(phase, some, turns, at_once))
        return self.asked[before:]
