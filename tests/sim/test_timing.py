"""The engine model against logged runs of real vLLM, and its presets against known rates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sim.kernels import fit, run_log
from warmlane.router.sim.engine import Engine, EngineConfig, Sequence
from warmlane.router.sim.timing import PRESETS, Timing
from warmlane.router.sim.traces import find_traces

TRACES = find_traces(os.environ, Path(__file__))
FOLDER = TRACES / "engine-validation" if TRACES else None

# (run, layers, blocks, sequences, CPU a step, all-reduce a token, bound on each mean's error).
# The first run has no tuned constant. The host of the others adds 3 ms of CPU to a step, fitted to
# the second run; the third goes over PCIe: two all-reduces a layer of 20 us each, and 10,240 bytes
# a token at 15 GB/s, fitted to that run.
PRO_HOST_S = 3e-3
PCIE_S = 64 * 2 * 20e-6
RUNS = [
    ("rtx4090_llama3.1-8b_tp1", 32, 2588, 256, 0.0, 0.0, 0.05),
    ("rtxpro6000_llama3.1-8b_tp1", 32, 30_000, 128, PRO_HOST_S, 0.0, 0.08),
    (
        "rtxpro6000_qwen3-32b_tp2",
        64,
        30_000,
        128,
        PRO_HOST_S + PCIE_S,
        64 * 2 * 10_240 / 15e9,
        0.08,
    ),
]


def play(timing: Timing, log: list[dict[str, float]]) -> dict[str, float]:
    """Mean TTFT, time per output token and latency of the model on the logged arrivals."""
    engine = Engine(
        EngineConfig(
            timing=timing,
            blocks=timing.kv_tokens // 16,
            max_num_seqs=timing.max_seqs,
            max_num_batched_tokens=timing.step_tokens,
        )
    )
    arrivals = sorted((row["queued_ts"], row["input_toks"], row["output_toks"]) for row in log)
    sequences = [(at, Sequence(int(i), int(o), [])) for at, i, o in arrivals]
    waiting = list(sequences)
    now = waiting[0][0]
    while waiting or engine.running or engine.waiting:
        while waiting and waiting[0][0] <= now:
            engine.add(waiting.pop(0)[1], now)
        seconds = engine.begin_step(now)
        if seconds is None:
            now = waiting[0][0]
            continue
        now += seconds
        engine.end_step(now)
    return means([(at, s.first_token_at, s.finished_at, s.output) for at, s in sequences])


def means(rows: list[tuple[float, float, float, float]]) -> dict[str, float]:
    return {
        "ttft": sum(first - at for at, first, _, _ in rows) / len(rows),
        "tpot": sum((last - first) / max(1, n - 1) for _, first, last, n in rows) / len(rows),
        "e2e": sum(last - at for at, _, last, _ in rows) / len(rows),
    }


@pytest.mark.traces
@pytest.mark.skipif(FOLDER is None, reason="no traces: set WARMLANE_TRACES")
@pytest.mark.parametrize(("run", "layers", "blocks", "seqs", "cpu_s", "reduce_s", "bound"), RUNS)
def test_means_of_a_real_run(
    run: str, layers: int, blocks: int, seqs: int, cpu_s: float, reduce_s: float, bound: float
) -> None:
    assert FOLDER is not None
    timing = fit(
        FOLDER, run, layers=layers, blocks=blocks, seqs=seqs, cpu_s=cpu_s, reduce_s=reduce_s
    )
    log = run_log(FOLDER, run)
    real = means(
        [
            (row["queued_ts"], row["first_token_ts"], row["last_token_ts"], row["output_toks"])
            for row in log
        ]
    )
    model = play(timing, log)
    errors = {name: model[name] / real[name] - 1 for name in real}
    print(run, {name: f"{error:+.1%} of {real[name]:.3f} s" for name, error in errors.items()})
    assert all(abs(error) <= bound for error in errors.values()), errors


# Prompt tokens a second at a chunk of 8,192 and inter-token times at 32 sequences of 2,048 tokens,
# computed from the same kernel tables (tokens/s, seconds).
KNOWN = {
    "llama-3.1-8b/h100": (42_800, 0.0118),
    "llama-3.1-8b/h200": (42_700, 0.0096),
    "llama-3.1-8b/a100": (15_200, 0.0189),
    "qwen3-32b/2xh100": (17_000, 0.0192),
    "qwen3-32b/4xh100": (26_500, 0.0124),
    "qwen3-32b/h200": (10_100, 0.0242),
    "qwen3-32b/2xh200": (16_900, 0.0153),
    "qwen3-32b/2xa100": (6_400, 0.0318),
    "llama-3.1-70b/4xh100": (13_200, 0.0201),
    "llama-3.1-70b/8xh100": (20_100, 0.0132),
    "llama-3.1-70b/4xh200": (13_200, 0.0162),
    "llama-3.1-70b/4xa100": (5_400, 0.0330),
}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_give_the_known_rates(name: str) -> None:
    timing, (rate, token_s) = PRESETS[name], KNOWN[name]
    chunk = timing.step_s(8192, 8192 * 4096, 0, 0, 1)
    assert 8192 / chunk == pytest.approx(rate, rel=0.06)
    assert timing.step_s(0, 0, 32, 32 * 2048, 32) == pytest.approx(token_s, rel=0.06)
