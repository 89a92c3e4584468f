"""Parts of the main job without processes: the slices, the report, the table, the load client."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from warmlane.router.sim.client import Client, Reply
from warmlane.router.sim.demo_fleet import read_metrics
from warmlane.router.sim.demo_run import Measured, report
from warmlane.router.sim.demo_slices import BUILTIN, SLICES, chosen
from warmlane.router.sim.demo_view import View
from warmlane.router.sim.player import Play, Result, play, read_stream
from warmlane.router.sim.server import FakeEngine, FakeOptions
from warmlane.router.sim.traces import TraceError
from warmlane.router.sim.workload import cut, generate


def measured(policy: str, ttft_s: float, hits: int, **changes: object) -> Measured:
    base = Measured(
        policy=policy,
        requests=10,
        errors=(),
        prompt_tokens=1000,
        hit_tokens=hits,
        ttft_p50_s=ttft_s / 2,
        ttft_p90_s=ttft_s,
        ttft_p99_s=ttft_s * 2,
        latency_p50_s=1.0,
        spread=1.1,
        lag_s=0.001,
        ttft_mean_s=ttft_s / 2,
        outside_s=0.001,
    )
    return msgspec.structs.replace(base, **changes)


def shown(rows: list[Measured]) -> str:
    stream = io.StringIO()
    View(Console(file=stream, width=100, highlight=False)).table(rows)
    return stream.getvalue()


def test_the_table_compares_the_last_policy_with_the_first() -> None:
    text = shown([measured("round-robin", 4.0, 200), measured("default", 1.0, 800)])
    assert "4.00x" in text
    assert "4.00x lower" in text
    swapped = shown([measured("round-robin", 1.0, 0), measured("default", 4.0, 800)])
    assert "4.00x higher" in swapped
    assert "warmlane" in text
    assert "void" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("spoilt", [{"lag_s": 0.5}, {"outside_s": 0.3}])
def test_times_are_void_when_they_measure_the_machine(spoilt: dict[str, float]) -> None:
    text = shown([measured("round-robin", 4.0, 200), measured("default", 1.0, 800, **spoilt)])
    assert "times void" in text
    assert "(1.000 s)" in text
    assert "4.00x" in text  # the counters stand
    assert "4.00x lower" not in text


def test_errors_are_named_under_the_table() -> None:
    failed = measured("default", 1.0, 800, errors=("status 503: x", "status 503: x"))
    assert shown([measured("round-robin", 4.0, 200), failed]).count("status 503") == 1


def test_a_report_leaves_failed_requests_out_of_the_times() -> None:
    good = [Result("a", n, 1.0 + n, 2.0, 10, 5, 3, "") for n in range(10)]
    bad = Result("b", 0, 0.0, 99.0, 0, 0, 0, "boom")
    found = report(
        "x",
        [*good, bad],
        prompt_tokens=100,
        hit_tokens=50,
        busy=[3.0, 1.0],
        lag_s=0.0,
        engine_ttft_s=5.0,
    )
    assert found.requests == 11
    assert found.errors == ("boom",)
    assert (found.ttft_p50_s, found.ttft_p99_s) == (6.0, 10.0)
    assert found.spread == 1.5
    assert (found.ttft_mean_s, found.outside_s) == (5.5, 0.5)
    assert found.hit_share == 0.5


def test_without_a_trace_the_built_in_workload_is_chosen(tmp_path: Path) -> None:
    workload, piece = chosen(None, None, builtin=False, seed=1)
    assert workload.name == "builtin-coding"
    assert piece == BUILTIN
    small, _ = chosen(None, tmp_path, builtin=True, seed=1, part=0.5)
    assert len(small.sessions) == BUILTIN.sessions // 2


def test_a_found_trace_is_preferred_and_cut(tmp_path: Path) -> None:
    row = '{"timestamp": 0, "input_length": 600, "output_length": 7, "hash_ids": [0, 1]}'
    (tmp_path / "mooncake_conversation.jsonl").write_text("\n".join([row] * 700))
    workload, piece = chosen(None, tmp_path, builtin=False, seed=1)
    assert workload.name == "mooncake_conversation"
    assert workload.requests == piece.requests == SLICES["mooncake_conversation"].requests
    with pytest.raises(TraceError, match="unknown trace"):
        chosen(tmp_path / "x.jsonl", None, builtin=False, seed=1)


def test_metrics_are_summed_by_name() -> None:
    page = '# HELP a\n# TYPE a gauge\na{x="1"} 2.0\na{x="2"} 3.5\nb 1\n'
    assert read_metrics(page) == {"a": 5.5, "b": 1.0}


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (503, b"no", "status 503"),
        (200, b'data: {"choices":[]}\n\n', "without"),
        (200, b'data: {"error":{"code":500}}\n\ndata: [DONE]\n\n', "error event"),
        (200, b'data: {"choices":[{"text":"","finish_reason":"abort"}]}\n\ndata: [DONE]\n\n',
         "finish_reason abort"),
        (200, b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n', ""),
    ],
)  # fmt: skip
def test_what_counts_as_a_failed_stream(status: int, body: bytes, why: str) -> None:
    text, _, error = read_stream(Reply(status, {}, body, 0.0, 0.0, 0.0))
    assert (why in error) if why else (error == "" and text == "a")


@asynccontextmanager
async def fake(**options: object) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(msgspec.convert({"speed": 50.0, **options}, FakeOptions))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize("chat", [False, True])
async def test_the_player_sends_every_turn_and_reads_the_usage(chat: bool) -> None:
    workload = cut(generate("chat", 6), turns=4)
    async with fake() as engine:
        seen: list[Result] = []
        how = Play(model="fake", chat=chat, speed=50.0, shrink=2.0, think_cap_s=1.0)
        results = await play(workload, engine.url, how, seen.append)
        assert results == seen
        assert [result.error for result in results] == [""] * workload.requests
        counters = engine.engine.counters
        assert counters.prefix_queries == sum(result.prompt for result in results)
        assert counters.prefix_hits == sum(result.cached for result in results)
        later = [result for result in results if result.turn > 0]
        assert all(result.cached > 0.8 * result.prompt - 40 for result in later)
        assert all(0 < result.ttft_s <= result.total_s for result in results)


async def test_failures_of_a_server_are_results() -> None:
    workload = cut(generate("chat", 2), turns=2)
    async with fake() as engine:
        for kind in ("reset", "unavailable", "cut"):
            await Client(engine.url).post("/fault", {"kind": kind, "after": 1})
        how = Play(model="fake", speed=50.0, think_cap_s=0.1)
        errors = [result.error for result in await play(workload, engine.url, how)]
        assert sum(map(bool, errors)) == 3
        assert len(errors) == 4


async def test_the_client_reuses_connections_and_gives_up_in_time() -> None:
    async with fake() as engine:
        client = Client(engine.url, timeout_s=0.3)
        for _ in range(5):
            assert (await client.get("/health")).status == 200
        assert len(engine.http.connections) == 1
        await client.post("/fault", {"kind": "hang"})
        with pytest.raises(TimeoutError):
            await client.post("/v1/completions", {"prompt": "a"})
        await client.close()
        await asyncio.sleep(0.05)
        assert not engine.http.connections
    with pytest.raises(OSError):
        await client.get("/health")
    with pytest.raises(ValueError, match="http://"):
        Client("https://x")
