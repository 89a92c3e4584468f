"""TensorRT-LLM's buffered events: its JSON into the view, and a server that hands them out once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from array import array
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from tests.common import until
from warmlane._core.kv_events import Intake
from warmlane._core.radix import RadixTree
from warmlane.router.config import Config, PoolConfig
from warmlane.router.core import Router
from warmlane.router.exact import ExactView
from warmlane.router.feeds.kv_events import Hub, KvFeed
from warmlane.router.feeds.trtllm_events import PolledSource, Translator
from warmlane.router.lane_exact import ExactLane
from warmlane.router.types import Kind, ReplicaSpec, Request

SIZE = 4
TOKENS = list(range(100, 148))


def event(number: int, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"event_id": number, "data": data, "window_size": 4096, **more}


def created(number: int = 0, **more: Any) -> dict[str, Any]:
    return event(number, {"type": "created", "num_blocks_per_cache_level": [100, 50]}, **more)


def stored(number: int, first: int, count: int, *, last: int = SIZE, **more: Any) -> dict[str, Any]:
    """Blocks `first` and on of one chain, as KVCacheEventSerializer writes them."""
    blocks = []
    for block in range(first, first + count):
        size = last if block == first + count - 1 else SIZE
        tokens = TOKENS[block * SIZE : block * SIZE + size]
        blocks.append(
            {
                "type": "stored_block",
                "block_hash": 2**63 + block,
                "tokens": [
                    {"type": "unique_token", "token_id": each, "token_extra_id": 0}
                    for each in tokens
                ],
                "cache_level": 0,
                "priority": 35,
                **more,
            }
        )
    parent = 2**63 + first - 1 if first else None
    return event(number, {"type": "stored", "parent_hash": parent, "blocks": blocks})


def removed(number: int, *blocks: int) -> dict[str, Any]:
    return event(number, {"type": "removed", "block_hashes": [2**63 + each for each in blocks]})


def moved(number: int, block: int, old: int, new: int) -> dict[str, Any]:
    level = {"type": "event_diff", "old_value": old, "new_value": new}
    data = {"type": "updated", "block_hash": 2**63 + block, "cache_level": level, "priority": None}
    return event(number, data)


def applied(made: Intake, translator: Translator, *events: dict[str, Any]) -> list[int]:
    """The numbers of the batches."""
    found = translator.batches(json.dumps(events).encode())
    for _, payload in found:
        assert not made.apply(0, payload)
    return [seq for seq, _ in found]


def intake() -> Intake:
    made = Intake(RadixTree(0, 1))
    made.open(0)
    return made


def test_a_life_of_events() -> None:
    made, translator = intake(), Translator(0)
    assert applied(made, translator, created()) == [0]
    assert applied(made, translator, stored(1, 0, 3)) == [1]
    assert made.stats(0)["stored"] == 3 and made.block_size(0) == SIZE
    applied(made, translator, stored(2, 3, 2, last=2))  # the last block is not full
    assert made.stats(0)["stored"] == 4
    applied(made, translator, moved(3, 2, 0, 1), moved(4, 4, 0, 1))
    assert made.tree.replica_blocks(0) == 4
    applied(made, translator, removed(5, 4, 3))  # 4 was never told
    stats = made.stats(0)
    assert (stats["unknown_removals"], stats["removed"]) == (0, 2)
    applied(made, translator, removed(6, 2), moved(7, 1, 0, 0), event(8, {"type": "news"}))
    assert made.tree.replica_blocks(0) == 2 and made.stats(0)["unknown_removals"] == 0


def test_numbers_tell_gaps_and_lives() -> None:
    made, translator = intake(), Translator(0)
    assert applied(made, translator, created(), stored(1, 0, 2), stored(2, 2, 2)) == [0]
    assert applied(made, translator, stored(4, 4, 1)) == [2], "one is missing"
    assert applied(made, translator, stored(5, 5, 1), stored(7, 6, 1)) == [3, 5]
    assert applied(made, translator, created(), stored(1, 0, 2)) == [0], "another life"
    assert applied(made, translator) == []
    late = Translator(0, SIZE)
    assert applied(intake(), late, stored(9, 0, 1)) == [1], "not from its beginning"
    assert applied(intake(), late, stored(3, 0, 1)) == [1] or late.seq == 4


def test_ranks_windows_adapters_and_images() -> None:
    made, translator = intake(), Translator(1)
    other = {**stored(0, 0, 2), "attention_dp_rank": 0}
    mine = {**stored(0, 0, 2), "attention_dp_rank": 1}
    assert applied(made, translator, other, mine) == [0]
    small = {**stored(1, 2, 2), "attention_dp_rank": 1, "window_size": 64}
    assert applied(made, translator, small) == []
    assert made.stats(0)["stored"] == 2
    applied(made, translator, {**stored(2, 0, 2, lora_id=7), "attention_dp_rank": 1})
    assert made.stats(0)["unnamed_adapters"] == 1
    picture = stored(3, 2, 1)
    picture["data"]["blocks"][0]["tokens"][0]["token_extra_id"] = 5
    plain = dict(stored(4, 2, 1))
    keyed = stored(5, 2, 1, mm_keys=[{"type": "mm_key", "hash": "ab", "start_offset": 0}])
    before = made.tree.blocks
    for each in (picture, plain, keyed):
        each["attention_dp_rank"] = 1
        each["data"]["blocks"][0]["block_hash"] += each["event_id"]
        applied(made, translator, each)
    assert made.tree.blocks == before + 3, "three different blocks"


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'[{"event_id": 1}]', b'[{"data": {}}]'])
def test_answers_of_another_kind(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        Translator(0).batches(body)


class Serving:
    """A server with events that are handed out once."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.waiting: list[dict[str, Any]] = []
        self.status = 200
        self.asked = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if request.method != self.method:
            return web.Response(status=405)
        given, self.waiting = self.waiting, []
        return web.json_response(given, status=self.status)


@contextlib.asynccontextmanager
async def polled(serving: Serving) -> AsyncIterator[tuple[ExactView, KvFeed]]:
    app = web.Application()
    app.router.add_route("*", "/kv_cache_events", serving.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    setting = f"http://127.0.0.1:{port}/kv_cache_events"
    specs = [ReplicaSpec(url=f"http://127.0.0.1:{port}", name="one")]
    router = Router(Config(pools=[PoolConfig(replicas=specs, kv_events=setting)]))
    lane, pool = router.lanes["default"], router.pools["default"]
    assert isinstance(lane, ExactLane)
    replica = pool.replicas[0]
    assert replica is not None
    hub = Hub(time.monotonic)
    async with aiohttp.ClientSession() as session:
        feed = KvFeed(
            pool, replica, lane.mixed.exact, session, hub, headers={}, metrics=router.metrics
        )
        task = asyncio.create_task(feed.run())
        try:
            yield lane.mixed.exact, feed
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            hub.close()
            await runner.cleanup()


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_server_is_polled(method: str) -> None:
    serving = Serving(method)
    serving.waiting = [created(), stored(1, 0, 3)]
    async with polled(serving) as (exact, feed):
        await until(lambda: exact.why(0) == "" and exact.tree.replica_blocks(0) == 3)
        asked = Request(kind=Kind.COMPLETIONS, model="m", tokens=array("I", TOKENS).tobytes())
        found, _ = exact.hits(asked, "", None, 1.0, array("d", [1.0]))
        assert found[0] == 3 * SIZE
        # Somebody else took two of its events.
        serving.waiting = [stored(4, 3, 1)]
        await until(lambda: (exact.why(0) or "").startswith("1 batches were missed"))
        assert exact.tree.replica_blocks(0) == 0
        serving.waiting = [created(), stored(1, 0, 2)]  # restarted
        await until(lambda: exact.why(0) == "" and exact.tree.replica_blocks(0) == 2)
        assert isinstance(feed.source, PolledSource)
        serving.status = 500
        await until(
            lambda: feed.source is not None and feed.source.stream.counts["poll_failed"] > 1
        )
        serving.status = 200
        many = [stored(2 + n, 2 + n % 8, 1) for n in range(2_000)]  # decoded by a thread
        serving.waiting = many
        await until(lambda: exact.tree.replica_blocks(0) == 10)
