"""`warmlane audit` beside real fake-engine processes, whose counters say what it must find."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import msgspec
import pytest

from warmlane.router.audit_listen import AuditView, Counters, Mark, counters
from warmlane.router.audit_sums import Slice, gpu_hours, grown, share
from warmlane.router.cli import main
from warmlane.router.config import PoolConfig
from warmlane.router.pool import Pool
from warmlane.router.types import LoadSnapshot, ReplicaSpec

COMMAND = (sys.executable, "-m", "warmlane")
EVENTS = ("--kv-events", "tcp://127.0.0.1:*")
REPLAY = ("--replay-endpoint", "tcp://127.0.0.1:*")
BLOCK = 16
PREFIX = 20 * BLOCK
OWN = 40  # tokens behind the prefix, alike nowhere


def environment() -> dict[str, str]:
    return dict(os.environ, PYTHONSAFEPATH="1", PYTHONPATH="src")


@asynccontextmanager
async def engine(*options: str) -> AsyncIterator[str]:
    """A fake engine in a process of its own; its URL."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("fake-engine", "--port", "0", *options),
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        found = re.search(r"http://\S+", line)
        assert found is not None, line
        yield found[0]
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def engines(*options: Sequence[str]) -> AsyncIterator[list[str]]:
    async with AsyncExitStack() as stack:
        entered = [stack.enter_async_context(engine(*each)) for each in options]
        yield [await each for each in entered]


async def audit(urls: list[str], meanwhile: Any, *options: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr; `meanwhile` runs once it listens."""
    named = [word for url in urls for word in ("--replica", url)]
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("audit", *named, *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    try:
        await meanwhile
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def traffic(urls: list[str], *, wait_s: float, requests: int = 24, prefixes: int = 4) -> None:
    """Round robin over the replicas; requests of one prefix meet every replica."""
    chance = random.Random(" ".join(urls))
    await asyncio.sleep(wait_s)
    async with aiohttp.ClientSession() as session:
        for number in range(requests):
            start = 1000 + number % prefixes * 1000
            own = [chance.randint(10_000, 90_000) for _ in range(OWN)]
            body = {"model": "fake", "prompt": [*range(start, start + PREFIX), *own]}
            url = urls[number % len(urls)] + "/v1/completions"
            async with session.post(url, json={**body, "max_tokens": 2}) as answer:
                assert answer.status == 200, await answer.text()


async def computed(urls: list[str]) -> float:
    """What the engines' own counters say that they computed."""
    total = 0.0
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(url + "/metrics") as answer:
                found = counters(await answer.read())
            assert found is not None and found.computed is not None
            total += found.computed
    return total


async def test_round_robin_recomputes_what_the_counters_say() -> None:
    """The truth: what the engines computed beyond one copy of each prefix and every own part."""
    async with engines((*EVENTS, *REPLAY), (*EVENTS, *REPLAY), (*EVENTS, *REPLAY)) as urls:
        work = traffic(urls, wait_s=3.0)
        status, out, err = await audit(
            urls, work, "--duration", "8", "--json", "--kv-bytes-per-token", "1000"
        )
        truth = await computed(urls)
    found = json.loads(out)
    assert (status, found["notes"]) == (0, []), err
    assert found["computed"] == truth
    assert found["recomputed"] == truth - 4 * PREFIX - 24 * OWN == 4 * 2 * PREFIX
    assert found["duplicated_tokens"] == 4 * 2 * PREFIX
    assert found["duplicated_bytes"] == 4 * 2 * PREFIX * 1000
    assert found["recomputed_sure"] == found["recomputed"]  # one request at a time: no queue
    low, high = found["saving"]["low"], found["saving"]["high"]
    assert 0 <= low <= found["recomputed_share"] <= high <= 1
    assert found["saving"]["expected"] == pytest.approx(found["recomputed_share"])
    assert found["gpu_hours_a_day"]["high"] >= found["gpu_hours_a_day"]["low"] >= 0
    assert {each["view"] for each in found["replicas"]} == {"whole"}


async def test_history_before_the_audit_counts_as_held_and_not_as_recomputed() -> None:
    async with engines((*EVENTS, *REPLAY), (*EVENTS, *REPLAY)) as urls:
        await traffic(urls[:1], wait_s=0.0, requests=4)
        work = traffic(urls[1:], wait_s=3.0, requests=4)
        status, out, err = await audit(urls, work, "--duration", "6", "--json")
    found = json.loads(out)
    assert status == 0, err
    assert [each["recomputed"] for each in found["replicas"]] == [0, 4 * PREFIX]
    assert found["replicas"][0]["computed"] == 0


async def test_a_silent_replica_is_named_and_the_others_are_compared() -> None:
    """Engine 1 has prefix 0 from before, which nobody can ask it for: one copy goes uncounted."""
    async with engines((*EVENTS, *REPLAY), EVENTS, ()) as urls:
        await traffic(urls[1:2], wait_s=0.0, requests=1)
        work = traffic(urls, wait_s=3.0)
        status, out, _ = await audit(urls, work, "--duration", "8", "--json")
        seen = json.loads(out)
        assert status == 1
        assert [each["view"] for each in seen["replicas"]] == ["whole", "partial", "silent"]
        assert seen["recomputed"] == 3 * PREFIX
        assert "--kv-events-config" in seen["notes"][0] and "not heard" in seen["notes"][0]
        assert "replay_endpoint" in seen["notes"][1]


async def test_no_events_at_all_is_an_error() -> None:
    async with engines((), ()) as urls:
        status, out, err = await audit(urls, asyncio.sleep(0), "--duration", "600")  # at once
    assert status == 2
    assert "0 of 2 replicas publish events" in err and "--kv-events-config" in err
    assert "silent" in out and "listened for 0 s" in out
    assert err.count("not heard yet") == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replica", "http://127.0.0.1:1"], "at least twice"),
        (["--duration", "0"], "--duration"),
        (["--kv-events", "off"], "nothing to audit"),
        (["--kv-events", "tcp://x"], "--kv-events"),
        (["--kv-events", "auto", "--kv-events", "auto", "--kv-events", "auto"], "once"),
        (["--gpus-per-replica", "0"], "out of range"),
    ],
)
def test_bad_options(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    named = ["--replica", "http://127.0.0.1:1", "--replica", "http://127.0.0.1:2"]
    assert main(["audit", *(options if options[0] == "--replica" else named + options)]) == 2
    assert said in capsys.readouterr().err


def view_of_three() -> AuditView:
    pool = Pool(PoolConfig(kv_events="auto"))
    for port in (1, 2, 3):
        pool.add(ReplicaSpec(url=f"http://127.0.0.1:{port}"), 0.0)
    view = AuditView(pool, 3)
    for slot in range(3):
        view.open(slot)
    view.counting.update(range(3))
    return view


def stored(hashes: list[int], first: int = 0) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": None,
        "token_ids": list(range(first, first + BLOCK * len(hashes))),
        "block_size": BLOCK,
    }


def batch(*events: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode([0.0, list(events), 0])


def test_a_mixed_batch_is_counted_event_by_event() -> None:
    """Stored, removed and stored again in one batch: the sum over it would tell another story."""
    view = view_of_three()
    view.apply(0, batch(stored([1, 2, 3])))
    removed = {"type": "BlockRemoved", "block_hashes": [13, 12]}
    view.apply(1, batch(stored([11, 12, 13]), removed, stored([21, 22], 5000)))
    assert (view.stored[:2], view.avoidable[:2]) == ([3, 5], [0, 3])


def test_what_nobody_holds_any_more_is_not_avoidable() -> None:
    view = view_of_three()
    view.apply(0, batch(stored([1, 2, 3]), {"type": "AllBlocksCleared"}))
    view.apply(1, batch(stored([11, 12, 13])))
    assert view.avoidable == [0, 0, 0]


def test_a_loaded_holder_explains_recomputation() -> None:
    view = view_of_three()
    view.apply(0, batch(stored([1, 2])))
    view.loaded = {2}  # holds nothing: no excuse
    view.apply(1, batch(stored([11, 12])))
    assert (view.avoidable[1], view.sure[1]) == (2, 2)
    view.apply(0, batch(stored([3], 9000)))
    view.loaded = {0}
    view.apply(1, batch(stored([13], 9000)))
    assert (view.avoidable[1], view.sure[1]) == (3, 2)


def test_the_range_holds_both_bounds_and_narrows_with_time() -> None:
    chance = random.Random(3)
    slices = [Slice(1000, part, part / 2) for part in (chance.uniform(0, 600) for _ in range(80))]
    few, many = share(slices[:8]), share(slices * 8)
    assert few is not None and many is not None
    assert few.high - few.low > many.high - many.low
    exact = sum(each.avoidable for each in slices) / 80_000
    assert many.low <= exact / 2 <= many.expected <= exact <= many.high
    assert share([Slice(0, 0, 0)]) is None


def test_gpu_hours() -> None:
    half = share([Slice(100, 50, 50)])
    assert half is not None
    hours = gpu_hours(half, 1000.0, [0.001, 0.002], 2)
    assert hours is not None  # half of 1000 tokens a second, 1 and 2 ms each, two GPUs, a day
    assert (hours.low, hours.expected, hours.high) == pytest.approx((24.0, 36.0, 48.0))
    assert gpu_hours(half, 1000.0, [], 2) is None


def mark(computed: float, queries: float) -> Mark:
    load = LoadSnapshot(taken_at=0.0, prefix_queries=queries, prefix_hits=0.0)
    told = Counters(load=load, computed=computed)
    return Mark(joined=True, batches=0, counters=told, stored=0, avoidable=0, sure=0)


def test_a_step_back_is_no_restart() -> None:
    """The slices have to add up to the whole."""
    steps = [mark(100, 200), mark(90, 210), mark(150, 260)]
    grew = [new.since(old).computed for old, new in pairwise(steps)]
    assert grew == [-10, 60] and sum(grew) == steps[2].since(steps[0]).computed
    assert mark(30, 40).since(steps[2]).computed == 30


def test_counters_that_began_anew() -> None:
    assert (grown(5.0, 8.0), grown(5.0, 2.0), grown(None, 2.0)) == (3.0, 2.0, None)


def test_prefill_seconds_of_engines() -> None:
    page = b"# TYPE vllm:x gauge\nvllm:num_requests_running 0\nvllm:num_requests_waiting 2\n"
    ttft = b"vllm:time_to_first_token_seconds_sum 5\nvllm:request_queue_time_seconds_sum 2\n"
    best = b"vllm:request_prefill_time_seconds_sum 1.5\n"
    seen = [counters(page + more) for more in (b"", ttft, ttft + best)]
    assert [each and each.prefill_s for each in seen] == [None, 3.0, 1.5]
    assert counters(b"nothing") is None
