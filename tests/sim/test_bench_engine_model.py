"""The benchmark of the engine model: its driver, its constants, its bars on the real runs."""

from __future__ import annotations

import importlib
import os
from array import array
from pathlib import Path
from typing import Any

import pytest

from warmlane.router.sim.engine import Engine, EngineConfig, Sequence
from warmlane.router.sim.timing import PRESETS
from warmlane.router.sim.traces import find_traces

ROOT = Path(__file__).resolve().parents[2]
TRACES = find_traces(os.environ, Path(__file__))
FOLDER = TRACES / "engine-validation" if TRACES else None
needs_traces = pytest.mark.skipif(FOLDER is None, reason="no traces: set WARMLANE_TRACES")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module: it is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.bench_engine_model")


def test_open_loop_equals_the_plain_engine_step_by_step(bench: Any) -> None:
    timing = PRESETS["llama-3.1-8b/h100"]
    asked = [(0.1 * n, 500 + 37 * n, 5 + n % 7) for n in range(40)]
    engine = Engine(EngineConfig(timing=timing, blocks=timing.kv_tokens // 16))
    twins = [(at, Sequence(prompt, output, array("Q"))) for at, prompt, output in asked]
    waiting, now = list(twins), 0.0
    while waiting or engine.running or engine.waiting:
        while waiting and waiting[0][0] <= now:
            engine.add(waiting.pop(0)[1], now)
        seconds = engine.begin_step(now)
        if seconds is None:
            now = waiting[0][0]
            continue
        now += seconds
        engine.end_step(now)
    found = bench.play(timing, asked)
    wanted = [(at, each.first_token_at, each.finished_at, each.output) for at, each in twins]
    for mine, twin in zip(found, wanted, strict=True):
        assert tuple(mine) == pytest.approx(twin)


def test_a_closed_loop_keeps_so_many_requests_open(bench: Any) -> None:
    timing = PRESETS["qwen3-32b/2xh100"]
    found = bench.play(timing, [(0.0, 300, 20 + n % 5) for n in range(30)], closed=4)
    edges = sorted([(each.at, 1) for each in found] + [(each.last, -1) for each in found])
    open_now = most = 0
    for _, step in edges:
        open_now += step
        most = max(most, open_now)
    assert most == 4 and len(found) == 30


def test_absent_traces_are_void(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "find_traces", lambda *_: None)
    monkeypatch.setattr(bench, "captures", lambda _: None)
    assert bench.main([]) == 0
    told = capsys.readouterr().out
    assert told.count(" void ") == 10 and " ok" not in told.split("void  #")[0]
    assert "10 void" in told


@needs_traces
@pytest.mark.traces
def test_rates_of_kernels_give_the_presets(bench: Any) -> None:
    tables = importlib.import_module("benchmarks.engine_tables")
    for model, gpu, count, name in (
        ("Qwen/Qwen3-32B", "h100_sxm", 2, "qwen3-32b/2xh100"),
        ("Qwen/Qwen3-32B", "h100_sxm", 4, "qwen3-32b/4xh100"),
        ("meta-llama/Llama-3.1-70B", "h200_sxm", 4, "llama-3.1-70b/4xh200"),
    ):
        made = tables.dense(FOLDER, model, gpu, count, 2)
        # The presets split compute and all-reduce of a token otherwise: their sum is compared.
        for field in ("t0_s", "weights_s", "pair_s", "kv_s", "kv_tokens"):
            wanted = getattr(PRESETS[name], field)
            assert getattr(made, field) == pytest.approx(wanted, rel=0.02), (name, field)
        preset = PRESETS[name]
        total = preset.token_s + preset.reduce_s
        assert made.token_s + made.reduce_s == pytest.approx(total, rel=0.03)


@needs_traces
@pytest.mark.traces
def test_real_runs_are_within_the_bar(bench: Any) -> None:
    for run in bench.RUNS:
        for name, (model, real) in bench.logged(FOLDER, run).items():
            assert abs(model / real - 1) <= bench.MAX_ERROR, (run.name, name, model, real)


@needs_traces
@pytest.mark.traces
def test_a_wrong_constant_shows(bench: Any) -> None:
    run = bench.RUNS[2]._replace(token_reduce_s=0.0, reduce_s=0.0)
    model, real = bench.logged(FOLDER, run)["ttft"]
    assert abs(model / real - 1) > 3 * bench.MAX_ERROR
    row = next(bench.measured(FOLDER))
    slow = bench.modelled(FOLDER, row)["tpot"]
    assert abs(slow / row.tpot - 1) < 0.25
    assert bench.modelled(FOLDER, row._replace(weight_bytes=4))["tpot"] > 1.2 * slow


def test_rank_correlation(bench: Any) -> None:
    assert bench.rank_correlation([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert bench.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
