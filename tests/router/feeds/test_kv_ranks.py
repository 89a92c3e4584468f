"""An engine with two data-parallel ranks behind one port: each rank is a replica, heard by itself.

The events are those of a recorded vLLM with `--data-parallel-size 2`, over real sockets.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from tests.common import until
from tests.core.event_captures import payload, steps
from tests.router.feeds.engine import Engine, recorded
from warmlane.router.build import Running, build
from warmlane.router.config import Config, PoolConfig, Scrape
from warmlane.router.lane_exact import ExactLane
from warmlane.router.types import Kind, ReplicaSpec, Request


class Ranks:
    """Two publishers that bind, as vLLM's do with `tcp://*`."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self.sockets = [self.context.socket(zmq.XPUB) for _ in range(2)]
        self.ports = [each.bind_to_random_port("tcp://127.0.0.1") for each in self.sockets]
        self.sent = [0, 0]

    def sources(self) -> dict[str, Any]:
        return {
            str(rank): {
                "enable_kv_cache_events": True,
                "publisher": "zmq",
                "endpoint": f"tcp://*:{port}",
                "replay_endpoint": None,
            }
            for rank, port in enumerate(self.ports)
        }

    async def joined(self) -> None:
        """Return when both have a subscriber: what is published before is lost."""
        await until(lambda: all(each.poll(0) for each in self.sockets))

    def send(self, rank: int, data: bytes) -> None:
        number = self.sent[rank].to_bytes(8, "big")
        self.sent[rank] += 1
        self.sockets[rank].send_multipart([b"", number, data])

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


def names(made: Running) -> dict[str, int | None]:
    return {each.name: each.spec.rank for each in made.router.pools["default"]}


async def test_ranks_behind_one_port_are_taken_apart(ranks: Ranks) -> None:
    async with Engine() as engine:
        engine.metrics = recorded("vllm-0.32.0-dp2")
        engine.event_sources = ranks.sources()
        config = PoolConfig(replicas=[ReplicaSpec(url=engine.url, name="dp")], kv_events="auto")
        made = await build(Config(pools=[config], scrape=Scrape(max_interval_s=0.3)))
        try:
            await until(lambda: names(made) == {"dp#0": 0, "dp#1": 1})
            await ranks.joined()
            lane = made.router.lanes["default"]
            assert isinstance(lane, ExactLane)
            pool, exact = lane.pool, lane.mixed.exact
            prompts: list[tuple[int, list[int]]] = []
            for step in steps("0.32.0-dp2"):
                for batch in step["batches"]:
                    ranks.send(batch["rank"], payload(batch))
                prompts += [
                    (each["rank"], each["prompt"]) for each in step["requests"] if "rank" in each
                ]
            await until(lambda: exact.trusted == 2)
            slots = [pool.by_name(f"dp#{rank}") for rank in range(2)]
            assert prompts
            for rank, prompt in prompts:
                here = slots[rank]
                assert here is not None
                await until(lambda slot=here.slot: exact.tree.replica_blocks(slot) > 0)
                request = Request(
                    kind=Kind.COMPLETIONS, model="tiny", tokens=array("I", prompt).tobytes()
                )
                found = made.router.explain(request, time.monotonic())
                hits = {row.replica: (row.view, row.hit_tokens) for row in found.replicas}
                whole = (len(prompt) - 1) // 32 * 32
                assert hits == {f"dp#{rank}": ("exact", whole), f"dp#{1 - rank}": ("exact", 0)}
        finally:
            await made.close()


async def test_an_engine_without_ranks_stays_whole(ranks: Ranks) -> None:
    async with Engine() as engine:
        engine.event_sources = {"0": ranks.sources()["0"]}
        config = PoolConfig(replicas=[ReplicaSpec(url=engine.url, name="one")], kv_events="auto")
        made = await build(Config(pools=[config], scrape=Scrape(max_interval_s=0.3)))
        try:
            await until(lambda: engine.seen.get("/kv_event_sources", 0) > 0)
            await until(lambda: ranks.sockets[0].poll(0))
            assert names(made) == {"one": None}
        finally:
            await made.close()
