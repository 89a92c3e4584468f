"""TensorRT-LLM's buffered KV cache events: `/kv_cache_events` of `trtllm-serve`, polled. Floor 5.

Owns their JSON (KVCacheEventSerializer in tensorrt_llm/_utils.py) and its translation into batches
that the intake reads. Each event is handed out once, to whoever asks first: another reader of the
same engine shows as a gap in the event ids, and the replica is not believed. The streamed events
of newer releases have no such limit (docs/exact.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import msgspec

from warmlane.router.config_events import Endpoints
from warmlane.router.exact import ExactView
from warmlane.router.feeds.client import EngineError, fetch
from warmlane.router.feeds.kv_events_stream import Stream

log = logging.getLogger("warmlane.events")

POLL_TIMEOUT_S: Final = 10.0  # the engine itself waits 2 s for events
QUIET_S: Final = 0.25  # after an answer without events
BUSY_S: Final = 0.02  # after one with events
TROUBLE_S: Final = 2.0
MAX_BYTES: Final = 64 * 1024 * 1024
SMALL_BYTES: Final = 32_768  # decoded on the loop (0.3 ms), larger answers by a thread
STEP_EVENTS: Final = 64  # of one batch for the intake
KNOWN_PARTS: Final = 100_000  # hashes of incomplete blocks, whose removal nobody needs to hear
_TIERS: Final = ("GPU", "CPU")

_pack = msgspec.msgpack.Encoder().encode


class Token(msgspec.Struct):
    token_id: int
    token_extra_id: int = 0


class Block(msgspec.Struct):
    block_hash: int
    tokens: list[Token]
    cache_level: int = 0
    lora_id: int | None = None
    mm_keys: list[Any] | None = None


class Diff(msgspec.Struct):
    new_value: int | None = None
    old_value: int | None = None


class Data(msgspec.Struct):
    """created, stored, removed or updated; what others would have is left out."""

    type: str
    parent_hash: int | None = None
    blocks: list[Block] = []
    block_hashes: list[int] = []
    block_hash: int | None = None
    cache_level: Diff | None = None


class Event(msgspec.Struct):
    event_id: int
    data: Data
    window_size: int | None = None
    attention_dp_rank: int | None = None


_decode = msgspec.json.Decoder(list[Event]).decode


class Translator:
    """Events of one engine, one rank: `batches(body)`. Sans-I/O.

    block_size: tokens of a block; 0: that of the first block that another one follows.
    """

    def __init__(self, rank: int, block_size: int = 0) -> None:
        self.rank = rank
        self.block_size = block_size
        self.seq = 0
        self._next_id: int | None = None
        self._window = 0
        self._level: dict[int, int] = {}  # of blocks that are not in the gpu's memory
        self._parts: dict[int, None] = {}  # incomplete blocks, oldest first

    def batches(self, body: bytes) -> list[tuple[int, bytes]]:
        """(number, payload) of each batch. Raises msgspec.DecodeError.

        Numbers grow by one, by two where events are missing, and begin at 0 with each life.
        """
        made: list[tuple[int, bytes]] = []
        told: list[dict[str, Any]] = []
        for event in _decode(body):
            if event.attention_dp_rank not in (None, self.rank):
                continue
            if event.event_id != self._next_id:
                self._flush(made, told)
                self._jump(event.event_id)
            self._next_id = event.event_id + 1
            window = event.window_size or 0
            if window >= self._window:  # smaller windows keep less of a prompt
                self._window = window
                told += self._events(event.data)
            if len(told) >= STEP_EVENTS:
                self._flush(made, told)
        self._flush(made, told)
        return made

    def _jump(self, event_id: int) -> None:
        if event_id == 0 or (self._next_id is not None and event_id < self._next_id):
            # Another life. When its beginning is missing, too, the number must not be the next one.
            self.seq = 0 if event_id == 0 else 1 if self.seq > 1 else self.seq + 1
            self._window = 0
            self._level.clear()
            self._parts.clear()
        else:
            self.seq += 1  # something is missing

    def _flush(self, made: list[tuple[int, bytes]], told: list[dict[str, Any]]) -> None:
        if told or (not made and self._next_id == 1):
            made.append((self.seq, _pack([0.0, told, self.rank])))
            self.seq += 1
            told.clear()

    def _events(self, data: Data) -> list[dict[str, Any]]:
        if data.type == "stored":
            return self._stored(data)
        if data.type == "removed":
            return [self._removed(each) for each in data.block_hashes if self._whole(each)]
        if data.type == "updated" and data.block_hash is not None and data.cache_level is not None:
            return self._moved(data.block_hash, data.cache_level.new_value)
        return []

    def _stored(self, data: Data) -> list[dict[str, Any]]:
        if not self.block_size and len(data.blocks) > 1:
            self.block_size = len(data.blocks[0].tokens)
        made: list[dict[str, Any]] = []
        parent = data.parent_hash
        for block in data.blocks:
            if len(block.tokens) != self.block_size:
                self._parts[block.block_hash] = None
                if len(self._parts) > KNOWN_PARTS:
                    del self._parts[next(iter(self._parts))]
                break  # nothing follows an incomplete block
            if block.cache_level:
                self._level[block.block_hash] = block.cache_level
            made.append(
                {
                    "type": "BlockStored",
                    "block_hashes": [block.block_hash],
                    "parent_block_hash": parent,
                    "token_ids": [_token(each) for each in block.tokens],
                    "block_size": self.block_size,
                    "lora_id": block.lora_id,
                    "medium": _TIERS[min(block.cache_level, 1)],
                    "mm_keys": [block.mm_keys] if block.mm_keys else None,
                }
            )
            parent = block.block_hash
        return made

    def _whole(self, block_hash: int) -> bool:
        """False: it was never told. Its life as an incomplete block ends here."""
        return self._parts.pop(block_hash, self) is self

    def _removed(self, block_hash: int) -> dict[str, Any]:
        tier = _TIERS[min(self._level.pop(block_hash, 0), 1)]
        return {"type": "BlockRemoved", "block_hashes": [block_hash], "medium": tier}

    def _moved(self, block_hash: int, level: int | None) -> list[dict[str, Any]]:
        """To another tier: a copy there, which needs no tokens, and one less here."""
        if level is None or level == self._level.get(block_hash, 0) or block_hash in self._parts:
            return []
        there = {
            "type": "BlockStored",
            "block_hashes": [block_hash],
            "parent_block_hash": None,
            "token_ids": [],
            "block_size": 0,
            "medium": _TIERS[min(level, 1)],
        }
        gone = self._removed(block_hash)
        if level:
            self._level[block_hash] = level
        return [there, gone]


def _token(token: Token) -> int | str:
    # An extra id stands for a part of an image or a prompt table: such a block equals no text.
    return f"{token.token_id}:{token.token_extra_id}" if token.token_extra_id else token.token_id


class PolledSource:
    """Asks one engine for its events, again and again. Has what `KvFeed` needs of a source."""

    def __init__(
        self,
        where: Endpoints,
        *,
        exact: ExactView,
        slot: int,
        rank: int,
        block_size: int,
        session: aiohttp.ClientSession,
        headers: dict[str, str],
        clock: Callable[[], float],
    ) -> None:
        self.where = where
        self.stream = Stream(exact, slot, replay=False, now=clock())
        self._session = session
        self._headers = headers
        self._clock = clock
        self._post: bytes | None = b"{}"  # older servers want POST, newer ones GET
        self._translator = Translator(rank)
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name=f"poll {where.events}"
        )

    def tick(self) -> None:
        """Time limits; every half second or so."""
        self.stream.tick(self._clock())

    def close(self) -> None:
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                pause_s = await self._poll()
            except (EngineError, msgspec.DecodeError) as error:
                self.stream.counts["poll_failed"] += 1
                log.debug("event=poll_failed source=%s why=%s", self.where.events, error)
                pause_s = TROUBLE_S
            await asyncio.sleep(pause_s)

    async def _poll(self) -> float:
        """One answer, applied; how long to wait for the next one. Raises EngineError."""
        status, body = await fetch(
            self._session,
            self.where.events,
            headers=self._headers,
            timeout_s=POLL_TIMEOUT_S,
            max_bytes=MAX_BYTES,
            data=self._post,
        )
        if status == 405:
            self._post = None if self._post is not None else b"{}"
        if status != 200:
            raise EngineError(f"status {status}")
        self.stream.connected(self._clock())
        if len(body) > SMALL_BYTES:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(None, self._translator.batches, body)
        else:
            found = self._translator.batches(body)
        for seq, payload in found:
            self.stream.batch(seq, payload, self._clock())
            while self.stream.busy:
                await asyncio.sleep(0)
                self.stream.step(self._clock())
            await asyncio.sleep(0)  # a batch a turn of the loop
        return BUSY_S if found else QUIET_S
