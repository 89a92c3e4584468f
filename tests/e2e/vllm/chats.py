"""The conversations: 12 chats of 6 turns over 4 system prompts, sent through the openai client.

The first pass lets an engine answer and writes every request down; later passes send the very same
requests in the same order. At the beginning one chat of each system prompt speaks alone. Each round
sends the next turn of every chat, four at a time, in an order of its own; half of the chats stream.
So all passes offer the same prefixes and differ only in who gets which request, and who
that is does not depend on which of several cold beginnings an engine happened to finish first.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from openai.types.completion_usage import CompletionUsage

CHATS, TURNS, SYSTEMS = 12, 6, 4
# A word is about 6 tokens here. A system prompt is long beside a turn: three others on one engine
# do not make it worth while to compute it on the other one, too, even before anything is learned.
SYSTEM_WORDS, USER_WORDS, ANSWER_TOKENS = 140, 14, 24
AT_ONCE = 4
SEED = 20
WORDS = "river stone lamp paper north window seven copper garden table".split()  # noqa: SIM905

Messages = list[ChatCompletionMessageParam]


@dataclass
class Tally:
    """What the clients saw in one pass."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    ttft_s: list[float] = field(default_factory=list)

    def add(self, usage: CompletionUsage | None, ttft_s: float | None) -> None:
        assert usage is not None, "the engine told no usage"
        details = usage.prompt_tokens_details
        assert details is not None, "the engine told no cached_tokens"
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += details.cached_tokens or 0
        if ttft_s is not None:
            self.ttft_s.append(ttft_s)


class Script:
    """The requests by round and chat; filled by the first pass, then only read."""

    def __init__(self) -> None:
        rng = random.Random(SEED)
        systems = [self._prose(rng, SYSTEM_WORDS) for _ in range(SYSTEMS)]
        self._users = [[self._prose(rng, USER_WORDS) for _ in range(TURNS)] for _ in range(CHATS)]
        self._first: list[Messages] = [
            [{"role": "system", "content": systems[chat % SYSTEMS]}] for chat in range(CHATS)
        ]
        self.orders = [rng.sample(range(CHATS), CHATS) for _ in range(TURNS)]
        self._written: dict[tuple[int, int], Messages] = {}
        self._answers: dict[tuple[int, int], str] = {}

    @staticmethod
    def _prose(rng: random.Random, words: int) -> str:
        return " ".join(rng.choice(WORDS) + str(rng.randrange(100)) for _ in range(words))

    def messages(self, chat: int, turn: int) -> Messages:
        """The request of this turn, made from the answer of the turn before on first use."""
        key = chat, turn
        if key not in self._written:
            if turn:
                before = chat, turn - 1
                said: Messages = [{"role": "assistant", "content": self._answers[before]}]
                history = self._written[before] + said
            else:
                history = self._first[chat]
            user: Messages = [{"role": "user", "content": self._users[chat][turn]}]
            self._written[key] = history + user
        return self._written[key]

    def answered(self, chat: int, turn: int, text: str) -> None:
        """Remember the answer for the next turn; only the first pass's counts."""
        self._answers.setdefault((chat, turn), text)


async def ask(client: AsyncOpenAI, script: Script, chat: int, turn: int, tally: Tally) -> None:
    """One turn of one chat; every other one streams, among those of each system prompt, too."""
    messages = script.messages(chat, turn)
    start = time.monotonic()
    if (chat + chat // SYSTEMS) % 2 == 0:
        whole = await client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=ANSWER_TOKENS, temperature=0, seed=SEED
        )
        script.answered(chat, turn, whole.choices[0].message.content or "")
        tally.add(whole.usage, None)
        return
    stream = await client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        seed=SEED,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage, first = "", None, None
    async for event in stream:
        for choice in event.choices:
            if choice.delta.content and first is None:
                first = time.monotonic() - start
            text += choice.delta.content or ""
        usage = event.usage or usage
    script.answered(chat, turn, text)
    tally.add(usage, first)


async def send_all(url: str, script: Script) -> Tally:
    """One pass of the whole script against one base URL. The first error ends it."""
    tally = Tally()
    slots = asyncio.Semaphore(AT_ONCE)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def in_turn(chat: int, turn: int) -> None:
            async with slots:
                await asyncio.wait_for(ask(client, script, chat, turn, tally), timeout=60)

        for chat in range(SYSTEMS):
            await in_turn(chat, 0)
        for turn, order in enumerate(script.orders):
            async with asyncio.TaskGroup() as tasks:
                for chat in order:
                    if turn or chat >= SYSTEMS:
                        tasks.create_task(in_turn(chat, turn))
    return tally
