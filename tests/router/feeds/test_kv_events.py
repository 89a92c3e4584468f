"""Events over real ZMQ sockets: fake engines publish, the feed hears, loses, and heals."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import time
from array import array
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq

from tests.common import until
from tests.core.event_captures import CLEARING, exception, payload, steps
from tests.sim.rig import fake, post
from warmlane.router.build import Running, build
from warmlane.router.config import Config, PoolConfig, Scrape
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError
from warmlane.router.exact import ExactView
from warmlane.router.feeds import kv_events_sockets
from warmlane.router.feeds.client import EngineError
from warmlane.router.feeds.kv_events import Hub, KvFeed, found_in, reachable
from warmlane.router.feeds.kv_events_sockets import END, SLICE_S, TURN
from warmlane.router.lane_exact import ExactLane
from warmlane.router.sim.tokens import tokenize
from warmlane.router.types import Kind, Outcome, ReplicaSpec, Request

WILD = "tcp://127.0.0.1:*"
SIZE = 16
TRUSTED = array("d", [1.0])
STRAIGHT_BYTES = 65_536  # of src_ext/zmtp.pxd
pack = msgspec.msgpack.encode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def words(number: int, blocks: int = 4) -> str:
    return f"{number:04d}" * (SIZE * blocks)


@contextlib.asynccontextmanager
async def running(*specs: ReplicaSpec, kv_events: str = "auto") -> AsyncIterator[Running]:
    pool = PoolConfig(replicas=list(specs), kv_events=kv_events)
    made = await build(Config(pools=[pool], scrape=Scrape(max_interval_s=0.3)))
    try:
        yield made
    finally:
        await made.close()


def exact_of(made: Running) -> ExactView:
    lane = made.router.lanes["default"]
    assert isinstance(lane, ExactLane)
    return lane.mixed.exact


def hits(
    made: Running, prompt: str, model: str = "fake", **more: Any
) -> dict[str, tuple[str, int]]:
    request = Request(
        kind=Kind.COMPLETIONS, model=model, tokens=tokenize(prompt.encode()).tobytes(), **more
    )
    found = made.router.explain(request, time.monotonic())
    return {row.replica: (row.view, row.hit_tokens) for row in found.replicas}


@pytest.mark.parametrize("form", ["map", "array"])
async def test_a_fleet_of_two_tells_what_it_holds(form: str, caplog: Any) -> None:
    options = {"kv_events": WILD, "replay_endpoint": WILD, "kv_events_form": form}
    with caplog.at_level(logging.INFO, "warmlane.view"):
        async with fake(**options) as (one, first), fake(**options) as (two, _):
            await post(first, "/v1/completions", prompt=words(1), max_tokens=1)
            specs = [ReplicaSpec(url=one.url, name="one"), ReplicaSpec(url=two.url, name="two")]
            async with running(*specs) as made:
                exact = exact_of(made)
                await until(lambda: exact.trusted == 2)
                # What was stored before this router came is there, by replay.
                name = made.router.pools["default"].by_name("one")
                assert name is not None and exact.tree.replica_blocks(name.slot) == 4
                await post(first, "/v1/completions", prompt=words(2), max_tokens=1)
                await until(lambda: exact.tree.replica_blocks(name.slot) == 8)
                model = next(iter(name.models.models)) if name.models else "fake"
                found = hits(made, words(2), model)
                assert found == {"one": ("exact", 48), "two": ("exact", 0)}
                text = made.metrics.render().decode()
                assert 'warmlane_replica_exact{pool="default",replica="one"} 1.0' in text
    told = [record.message for record in caplog.records if "view=exact" in record.message]
    assert len(told) == 2, "one line a change"


async def test_engines_that_connect_are_bound_for() -> None:
    port = free_port()
    options = {"kv_events": f"tcp://127.0.0.1:{port}", "replay_endpoint": WILD}
    async with (
        fake(**options) as (engine, session),
        running(ReplicaSpec(url=engine.url, name="one")) as made,
    ):
        exact = exact_of(made)
        await until(lambda: exact.trusted == 1)
        await post(session, "/v1/completions", prompt=words(1), max_tokens=1)
        await until(lambda: exact.tree.blocks == 4)


async def test_why_there_are_no_events() -> None:
    async with fake() as (engine, _):
        spec = ReplicaSpec(url=engine.url, name="one")
        async with running(spec) as made:
            exact = exact_of(made)
            await until(lambda: (exact.why(0) or "").startswith("/kv_event_sources: status 404"))
            assert hits(made, words(1))["one"][0] == "approximate"
        async with running(msgspec.structs.replace(spec, kv_events="off")) as made:
            await asyncio.sleep(0.2)
            assert exact_of(made).why(0) is None


@pytest.mark.parametrize(
    ("body", "rank", "why"),
    [
        (b"[]", None, "not understood"),
        (b"{", None, "not understood"),
        (b'{"0":{"endpoint":"tcp://*:1"}}', None, "not understood"),
        (b'{"0":{"endpoint":"tcp://*:1","enable_kv_cache_events":false}}', None, "are off"),
        (
            b'{"0":{"endpoint":"tcp://*:1","enable_kv_cache_events":true,"publisher":"zmq"},"1":{}}',
            None,
            "2 data-parallel ranks",
        ),
    ],
)
def test_answers_without_events(body: bytes, rank: int | None, why: str) -> None:
    with pytest.raises(EngineError, match=why):
        found_in(body, rank, "http://h:1")


def test_endpoints_in_an_answer() -> None:
    config = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "tcp://*:5557"}
    sources = {"0": {}, "1": {**config, "endpoint": "tcp://*:5558", "replay_endpoint": None}}
    found = found_in(msgspec.json.encode(sources), 1, "http://[fe80::1]:8000")
    assert (found.where.events, found.where.replay, found.bind) == (
        "tcp://[fe80::1]:5558",
        "",
        False,
    )
    one = {"0": {**config, "endpoint": "tcp://10.0.0.9:1", "replay_endpoint": "tcp://[::]:2"}}
    found = found_in(msgspec.json.encode(one), None, "http://h:8000")
    assert (found.where.events, found.where.replay, found.bind) == (
        "tcp://10.0.0.9:1",
        "tcp://h:2",
        None,
    )
    assert reachable("ipc:///tmp/x", "h") == "ipc:///tmp/x"


class Publisher:
    """A publisher whose every message can be left out, cut or delayed; its replay, too."""

    def __init__(self, *, topic: bool = True) -> None:
        self.context = zmq.Context()
        self.topic = [b"topic"] if topic else []
        self.sent: list[bytes] = []
        self.lost_in_replay: set[int] = set()
        self.markers = True
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.replay_endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.asked: list[int] = []
        self.up()

    def up(self) -> None:
        self.pub = self.context.socket(zmq.PUB)
        self.pub.setsockopt(zmq.SNDHWM, 0)
        self.pub.bind(self.endpoint)
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.SNDHWM, 0)
        self.router.bind(self.replay_endpoint)

    def down(self) -> None:
        self.pub.close(linger=0)
        self.router.close(linger=0)

    def close(self) -> None:
        self.down()
        self.context.destroy(linger=0)

    def store(self, *blocks: int, lost: bool = False, payload: bytes | None = None) -> None:
        events = [
            {
                "type": "BlockStored",
                "block_hashes": [block + 1],
                "parent_block_hash": None,
                "token_ids": [block] * SIZE,
                "block_size": SIZE,
            }
            for block in blocks
        ]
        self.sent.append(payload or pack([time.time(), events, 0]))
        if not lost:
            number = (len(self.sent) - 1).to_bytes(8, "big")
            self.pub.send_multipart([b"topic", number, self.sent[-1]])

    def answer(self) -> None:
        """What came in on the replay socket."""
        while self.router.poll(0):
            client, _, start = self.router.recv_multipart()
            self.asked.append(int.from_bytes(start, "big"))
            for seq in range(self.asked[-1], len(self.sent)):
                if seq not in self.lost_in_replay:
                    number = seq.to_bytes(8, "big")
                    self.router.send_multipart([client, b"", *self.topic, number, self.sent[seq]])
            self.lost_in_replay.clear()
            if self.markers:
                marker = [b""] if self.topic else []
                self.router.send_multipart([client, b"", *marker, END, b""])
            self.markers = True


@contextlib.asynccontextmanager
async def heard(
    publisher: Publisher, *, replay: bool = True
) -> AsyncIterator[tuple[ExactView, KvFeed]]:
    """A feed that hears one publisher, without a router's other feeds."""
    setting = publisher.endpoint + (f",{publisher.replay_endpoint}" if replay else "")
    specs = [ReplicaSpec(url="http://127.0.0.1:1", name="one")]
    router = Router(Config(pools=[PoolConfig(replicas=specs, kv_events=setting)]))
    lane = router.lanes["default"]
    assert isinstance(lane, ExactLane)
    exact, pool = lane.mixed.exact, router.pools["default"]
    replica = pool.replicas[0]
    assert replica is not None
    hub = Hub(time.monotonic)
    async with aiohttp.ClientSession() as session:
        feed = KvFeed(pool, replica, exact, session, hub, headers={}, metrics=router.metrics)
        task = asyncio.create_task(feed.run())
        answers = asyncio.create_task(answering(publisher))
        try:
            yield exact, feed
        finally:
            for each in (task, answers):
                each.cancel()
            await asyncio.gather(task, answers, return_exceptions=True)
            hub.close()


async def answering(publisher: Publisher) -> None:
    while True:
        if not publisher.router.closed:
            publisher.answer()
        await asyncio.sleep(0.01)


def applied(feed: KvFeed) -> int:
    assert feed.source is not None
    return feed.source.stream.counts["batches"]


def knows(exact: ExactView, blocks: range) -> bool:
    return exact.why(0) == "" and exact.tree.replica_blocks(0) == len(blocks)


@pytest.mark.parametrize("topic", [True, False])
async def test_gaps_are_replayed_in_both_layouts(topic: bool) -> None:
    publisher = Publisher(topic=topic)
    try:
        publisher.store(0)
        async with heard(publisher) as (exact, feed):
            await until(lambda: knows(exact, range(1)))
            publisher.store(1)
            publisher.store(2, lost=True)
            publisher.store(3, lost=True)
            publisher.lost_in_replay = {2}
            publisher.store(4)
            await until(lambda: knows(exact, range(5)))
            publisher.markers = False
            publisher.store(5, lost=True)
            publisher.store(6)
            await until(lambda: knows(exact, range(7)))
            assert feed.source is not None
            counts = feed.source.stream.counts
            assert counts["gap"] == 2 and counts["replay_gap"] == 1
            assert counts["replay_no_end"] == 1
            assert publisher.asked[0] == 0 and len(publisher.asked) == 5
    finally:
        publisher.close()


@pytest.mark.parametrize("again", [False, True])
async def test_a_lost_connection_is_proven_by_payloads(again: bool) -> None:
    """The engine is back with as many batches as before: the same ones, or another life."""
    publisher = Publisher()
    try:
        async with heard(publisher) as (exact, feed):
            await until(lambda: exact.why(0) == "")
            for block in range(5):
                publisher.store(block)
            await until(lambda: knows(exact, range(5)))
            publisher.down()
            await until(lambda: exact.why(0) == "disconnected")
            if again:
                publisher.sent.clear()
                for block in range(5):
                    publisher.store(100 + block, lost=True)
            publisher.up()
            await until(lambda: knows(exact, range(5)))
            assert feed.source is not None
            assert feed.source.stream.counts["restart"] == (1 if again else 0)
            publisher.store(50)
            await until(lambda: knows(exact, range(6)))
    finally:
        publisher.close()


async def test_without_a_replay_socket_it_is_relearned() -> None:
    publisher = Publisher()
    try:
        publisher.store(0)
        async with heard(publisher, replay=False) as (exact, _):
            await until(lambda: (exact.why(0) or "").startswith("joined late"))
            await asyncio.sleep(0.3)  # a subscription takes a moment to arrive
            publisher.store(payload=pack([1.0, [["AllBlocksCleared"]], 0]))
            publisher.store(1)
            await until(lambda: knows(exact, range(1)))
            publisher.store(2, lost=True)
            publisher.store(3)
            await until(lambda: (exact.why(0) or "").startswith("1 batches were missed"))
            publisher.store(payload=b"\xc1")
            await until(lambda: exact.why(0) == "a batch could not be read")
    finally:
        publisher.close()


async def test_a_flood_leaves_the_loop_to_others() -> None:
    """Tens of thousands of waiting batches: in between the loop runs, again and again."""
    publisher = Publisher()
    try:
        async with heard(publisher) as (exact, feed):
            await until(lambda: exact.why(0) == "")
            for turn in range(20_000):
                publisher.store(*range(8 * turn, 8 * turn + 8))
            passes = 0
            while exact.tree.blocks < 160_000:
                await asyncio.sleep(0)
                passes += 1
                assert passes < 5_000_000
            assert feed.source is not None and feed.source.stream.counts["batches"] == 20_000
            # 160,000 blocks take 30 ms at the very best: with slices of 0.5 ms the loop had its
            # turn at least this often.
            assert passes > 0.02 / SLICE_S
    finally:
        publisher.close()


@pytest.mark.parametrize("slow", [False, True])
async def test_work_of_one_turn_is_bounded(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever waits: so many steps in time, one when the time is over after it, and no step is
    of more than 64 KB of batches and the one that crosses the line."""
    moments = itertools.count(0.0, 1.0 if slow else 0.0)
    monkeypatch.setattr(kv_events_sockets, "perf_counter", lambda: next(moments))
    publisher = Publisher()
    done: list[int] = []
    try:
        async with heard(publisher) as (exact, feed):
            await until(lambda: exact.why(0) == "")
            source = feed.source
            assert source is not None
            real = source.drain

            def watched(end: float) -> bool:
                before = applied(feed)
                more = real(end)
                done.append(applied(feed) - before)
                return more

            monkeypatch.setattr(source, "drain", watched)
            for turn in range(20_000):
                publisher.store(*range(8 * turn, 8 * turn + 8))
            await until(lambda: applied(feed) == 20_000)
            a_step = STRAIGHT_BYTES // len(publisher.sent[0]) + 2
            assert max(done) <= (1 if slow else TURN) * a_step
            assert max(done) > 1, "or nothing waited"
    finally:
        publisher.close()


async def test_two_replicas_cannot_have_one_endpoint() -> None:
    port = free_port()
    specs = [ReplicaSpec(url=f"http://127.0.0.1:{i}", name=f"r{i}") for i in (1, 2)]
    async with running(*specs, kv_events=f"tcp://127.0.0.1:{port}") as made:
        exact = exact_of(made)
        await until(lambda: any("another replica" in (exact.why(slot) or "") for slot in (0, 1)))


async def test_a_recorded_engine_through_the_sockets() -> None:
    """Every step's batches over ZMQ: the decision then predicts what the engine says."""
    publisher = Publisher()
    compared = wrong = 0
    late = False
    try:
        async with heard(publisher) as (exact, feed):
            await until(lambda: exact.why(0) == "")
            for step in steps("0.32.0-main"):
                for request in step["requests"]:
                    late |= request["path"].startswith(CLEARING)
                    if "cached" not in request or len(step["requests"]) != 1:
                        continue
                    if exception(request, clear_is_late=late):
                        continue
                    adapter = "" if request["model"] == "tiny" else request["model"]
                    asked = Request(
                        kind=Kind.COMPLETIONS,
                        model="tiny",
                        tokens=array("I", request["prompt"]).tobytes(),
                        salt=request.get("cache_salt", ""),
                    )
                    found, _chains = exact.hits(asked, adapter, None, 1.0, TRUSTED)
                    compared += 1
                    wrong += found[0] != request["cached"]
                for batch in step["batches"]:
                    raw = payload(batch)
                    late &= b"AllBlocksCleared" not in raw
                    publisher.store(payload=raw)
                await until(lambda: applied(feed) == len(publisher.sent) and not exact.why(0))
    finally:
        publisher.close()
    assert compared >= 35
    assert wrong == 0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="kv_events"):
        Router(Config(pools=[PoolConfig(kv_events="nowhere")]))


async def test_a_rolling_restart_mixes_both_views() -> None:
    """One engine with events, one without, one restarted: each replica by its own view, always."""
    options = {"kv_events": WILD, "replay_endpoint": WILD}
    port = free_port()
    async with fake(**options) as (one, first), fake() as (two, second):
        specs = [ReplicaSpec(url=one.url, name="one"), ReplicaSpec(url=two.url, name="two")]
        async with running(*specs) as made:
            exact = exact_of(made)
            await until(lambda: exact.trusted == 1)
            model = next(iter(made.router.pools["default"].by_name("one").models.models))  # type: ignore[union-attr]
            tokens = tokenize(words(7, 8).encode()).tobytes()
            request = Request(kind=Kind.COMPLETIONS, model=model, tokens=tokens)
            for session, slot in ((first, 0), (second, 1)):
                decision = made.router.decide(request, time.monotonic(), 0)
                made.router.sent(decision.ticket, slot, time.monotonic())
                await post(session, "/v1/completions", prompt=words(7, 8), max_tokens=1)
                made.router.first_token(decision.ticket, time.monotonic())
                made.router.close(decision.ticket, Outcome(), time.monotonic())
            await until(lambda: exact.tree.blocks == 8)
            found = hits(made, words(7, 8), model)
            assert found["one"] == ("exact", 112) and found["two"][0] == "approximate"
            assert found["two"][1] > 0
            # A third one joins while the fleet rolls: it has events, and is empty.
            async with fake(**options, port=port) as (three, _):
                spec = ReplicaSpec(url=three.url, name="three")
                made.feeds.membership["default"].add(spec, time.monotonic())
                await until(lambda: exact.trusted == 2)
                assert hits(made, words(7, 8), model)["three"] == ("exact", 0)
            await until(lambda: exact.trusted == 1)
            assert hits(made, words(7, 8), model)["three"][0] == "approximate"
