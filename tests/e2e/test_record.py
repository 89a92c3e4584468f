"""A record end to end: serve before two modelled engines, then the lab on what it wrote."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from warmlane.router.cli import main
from warmlane.router.sim.demo_fleet import Replicas, RouterProcess
from warmlane.router.sim.player import Play, play
from warmlane.router.sim.record_trace import answered, read
from warmlane.router.sim.workload import cut, generate

PROFILE = "llama-3.1-8b/h100"
HOW = Play(model="fake", output_shrink=8.0, rate=20.0, think_cap_s=0.3)


async def test_serve_records_and_the_lab_predicts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hours.jsonl.gz"
    replicas = Replicas(2, ["--model", HOW.model, "--gpu", PROFILE])
    try:
        await replicas.start()
        router = RouterProcess(replicas.urls, "default", options=["--record", str(path)])
        try:
            await router.start()
            made = cut(generate("agent", 8, seed=2), turns=6)
            results = await play(made, router.url, HOW)
        finally:
            await router.stop()
    finally:
        await replicas.stop()
    assert not [result.error for result in results if result.error]

    recorded = read(path)
    assert len(answered(recorded)) == len(results) == made.requests
    assert recorded.head.policy == {"default": "default"}
    assert sum(line.cached for line in recorded.lines) == sum(each.cached for each in results)
    for line in recorded.lines:
        assert 0 < line.ttft <= line.e2e and line.prompt > 0 and line.words
    text = gzip.decompress(path.read_bytes())
    assert b"http" not in text and b"fake" not in text

    # The machine that tests run on may be slow: whether it is predicted well is not judged here,
    # only that the lab says so and does as it says.
    words = ["replay", str(path), "--backtest", "--profile", PROFILE, "--front-ms", "1", "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{len(results)} recorded requests under default" in said
    (hit,) = [line.split() for line in said.splitlines() if line.startswith("hit share")]
    assert abs(float(hit[4])) < 0.1
    status = main([*words, "--policy", "default,round-robin"])
    assert status == (3 if "too large" in said else 0)
    assert ("round-robin" in capsys.readouterr().out) == (status == 0)
