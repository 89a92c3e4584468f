"""The main job end to end: real processes, the real proxy, hits by the engines' own counters.

One run on each of three real traces and on the built-in workload. Each plays the same slice through
round robin and through warmlane with fresh caches. The margins are about half of what is seen, so
that they hold on a slow machine; times are not asserted.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from warmlane.router.sim.client import Client
from warmlane.router.sim.demo_fleet import Child, FleetError, RouterProcess
from warmlane.router.sim.demo_run import Measured, pair
from warmlane.router.sim.demo_slices import chosen
from warmlane.router.sim.traces import find_traces

TRACES = find_traces(os.environ, Path(__file__))

# trace -> least factor of hit tokens, least gain of the hit share, part of the slice
REAL = {
    "agentic": (1.4, 0.15, 0.6),
    "mooncake_synthetic": (1.7, 0.03, 0.6),
    "taubench": (1.05, 0.04, 0.6),
}


def check(rows: list[Measured], factor: float, gain: float) -> None:
    base, own = rows
    for row in rows:
        assert row.errors == (), row.policy
        print(f"{row.policy}: {row.hit_tokens} of {row.prompt_tokens} tokens hit")
    assert base.requests == own.requests
    # the same prompts went through both
    assert own.prompt_tokens == pytest.approx(base.prompt_tokens, rel=0.001)
    assert own.hit_tokens >= factor * base.hit_tokens
    assert own.hit_share >= base.hit_share + gain


@pytest.mark.traces
@pytest.mark.skipif(TRACES is None, reason="no traces: set WARMLANE_TRACES")
@pytest.mark.parametrize("name", REAL)
async def test_a_slice_of_a_real_trace(name: str) -> None:
    assert TRACES is not None
    path = next(iter(sorted(TRACES.glob(f"{name}*"))), None)
    if path is None:
        pytest.skip(f"no {name} in {TRACES}")
    factor, gain, part = REAL[name]
    workload, piece = chosen(path, None, builtin=False, seed=1, part=part)
    check(await pair(workload, piece), factor, gain)


async def test_the_built_in_workload_as_chats() -> None:
    """Messages with the answers that really came back; needs no trace."""
    workload, piece = chosen(None, None, builtin=True, seed=1, part=0.6)
    assert piece.chat
    check(await pair(workload, piece), 1.2, 0.1)


async def test_make_run_prints_a_table_and_leaves_a_router_that_answers(tmp_path: Path) -> None:
    """What `make run` starts: the table, then the printed curl line works until Ctrl-C."""
    out = tmp_path / "rows.json"
    words = ["demo", "--builtin", "--part", "0.3", "--port", "0", "--json", str(out)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "warmlane", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    text = ""
    try:
        async with asyncio.timeout(120):
            while not text.endswith("Ctrl-C ends it.\n"):
                line = (await process.stdout.readline()).decode()
                assert line, (await process.stderr.read()).decode()
                text += line
        assert "prompt tokens hit" in text
        rows = msgspec.json.decode(out.read_bytes(), type=list[Measured])
        assert [row.policy for row in rows] == ["round-robin", "default"]
        assert rows[1].hit_tokens > rows[0].hit_tokens
        printed = re.search(r"^curl .*$", text, re.MULTILINE)
        assert printed is not None
        curl = await asyncio.create_subprocess_shell(
            printed[0], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        answer, _ = await asyncio.wait_for(curl.communicate(), 20)
        assert curl.returncode == 0
        assert answer.startswith(b"data: {")
        assert answer.rstrip().endswith(b"data: [DONE]")
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--trace", "/nowhere/mooncake_x.jsonl"],
        ["demo", "--trace", "/nowhere/unknown.jsonl"],
        ["demo", "--replicas", "0"],
        ["replay", "/nowhere/azure_llm_x.csv"],
        ["replay", "chat", "--policy", "nope", "--sessions", "2"],
        ["fake-engine", "--blocks", "1"],
        ["fake-engine", "--fault", "nope"],
        ["fake-engine", "--speed", "0"],
    ],
)
async def test_bad_input_ends_with_status_2_and_one_line(words: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "warmlane", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 2
    assert len(said.decode().strip().splitlines()) == 1, said.decode()


async def test_a_child_that_cannot_start_says_why() -> None:
    child = Child(["fake-engine", "--port", "70000"])
    with pytest.raises(FleetError, match="--port"):
        await child.start(["listening on (.*)"])
    await child.stop()


async def test_a_killed_replica_costs_no_request() -> None:
    """Each of two replicas in a process of its own; one is killed under load."""
    children = [Child(["fake-engine", "--port", "0", "--speed", "20"]) for _ in range(2)]
    urls = [(await child.start([r"listening on (\S+)"]))[0] for child in children]
    router = RouterProcess(urls, "default")
    try:
        await router.start()
        client = Client(router.url)
        body = {"model": "fake", "max_tokens": 4}

        async def ask(number: int) -> int:
            prompt = f"{number % 7} " + "warm " * 200
            return (await client.post("/v1/completions", {**body, "prompt": prompt})).status

        assert {await ask(number) for number in range(14)} == {200}
        burst = [asyncio.ensure_future(ask(number)) for number in range(20)]
        children[0].kill()
        later = [await ask(number) for number in range(30)]
        assert set(await asyncio.gather(*burst)) == {200}
        assert set(later) == {200}
        await client.close()
    finally:
        await router.stop()
        for child in children:
            await child.stop()
