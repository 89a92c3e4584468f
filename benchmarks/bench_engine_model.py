"""Does the model of an engine behave like real vLLM? Its times against public measurements.

    PYTHONPATH=. python -m benchmarks.bench_engine_model [--quick] [--save]

- Three logged runs (vLLM 0.19, 300 ShareGPT requests at 10/s, one with about 190 preemptions): the
  model meets the same arrivals and lengths, with constants from the kernel profile of that machine
  and what RUNS states as fitted. Good: mean TTFT, TPOT and E2E within 5 %.
- Tables of mean TPOT on H100 and H200 (bf16 Qwen3-32B, FP8 Llama-3.1-70B; 1 to 8 GPUs): closed
  loop at the stated concurrency, constants from GPU-wide kernel rates (engine_tables.py). The
  tables do not tell how lengths vary; JITTER is taken. Good: mean absolute error <= 8 %. TTFT
  depends on that unknown and has no bar; its rank correlation is told.
- Block accounting: the captured traffic of a real vLLM 0.32, replayed; cached tokens and stored
  blocks must be equal.

Void where the data (docs/workloads.md, folder engine-validation) is not there.
"""

from __future__ import annotations

import csv
import gzip
import os
import subprocess
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from benchmarks.bars import Bench
from benchmarks.engine_tables import SHAPES, dense, fit, run_log
from warmlane._core.engine_step import Fleet
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.engine import ADAPTER_LOAD_S, ADAPTER_STEP
from warmlane.router.sim.timing import Timing
from warmlane.router.sim.traces import find_traces

ROOT = Path(__file__).resolve().parents[1]
CAPTURES = "tests/sim/test_engine_golden.py"
MAX_ERROR = 0.05
MAX_TPOT_ERROR = 0.08
JITTER = 0.2  # lengths between 1 - JITTER and 1 of what the table states
ROUNDS = 6  # requests a table's row, times its concurrency


class Logged(NamedTuple):
    """A logged run, and what the profile of its machine does not hold.

    host_s: CPU of a step; reduce_s: all-reduce of a step; token_reduce_s: of a token.
    """

    name: str
    layers: int
    blocks: int
    seqs: int
    host_s: float = 0.0
    reduce_s: float = 0.0
    token_reduce_s: float = 0.0


# The first has no fitted constant. 3 ms of CPU a step are fitted to the second one (its host
# differs); the third goes over PCIe: two all-reduces a layer of 20 us each and 10,240 bytes a token
# at 14 GB/s, both fitted to it.
PRO_HOST_S = 3e-3
RUNS = (
    Logged("rtx4090_llama3.1-8b_tp1", 32, 2588, 256),
    Logged("rtxpro6000_llama3.1-8b_tp1", 32, 30_000, 128, PRO_HOST_S),
    Logged(
        "rtxpro6000_qwen3-32b_tp2",
        64,
        30_000,
        128,
        PRO_HOST_S,
        64 * 2 * 20e-6,
        64 * 2 * 10_240 / 14e9,
    ),
)


class Times(NamedTuple):
    """Of one request, seconds; output in tokens."""

    at: float
    first: float
    last: float
    output: int


def means(found: Sequence[Times]) -> dict[str, float]:
    """Mean TTFT, time per output token and latency."""
    count = len(found)
    return {
        "ttft": sum(each.first - each.at for each in found) / count,
        "tpot": sum((e.last - e.first) / max(1, e.output - 1) for e in found) / count,
        "e2e": sum(each.last - each.at for each in found) / count,
    }


def engine(timing: Timing) -> Fleet:
    """One replica with this timing."""
    given: dict[str, float] = msgspec.structs.asdict(timing)
    blocks = {"blocks": timing.kv_tokens // 16, "block_size": 16}
    limits = {"max_num_seqs": timing.max_seqs, "max_num_batched_tokens": timing.step_tokens}
    adapters = {"adapter_step": ADAPTER_STEP, "adapter_load_s": ADAPTER_LOAD_S, "max_loras": 1}
    return Fleet([given | blocks | limits | adapters])


def play(timing: Timing, asked: Sequence[tuple[float, int, int]], closed: int = 0) -> list[Times]:
    """The model on (arrival, prompt, output); closed: arrivals do not count, so many at a time."""
    fleet, keys = engine(timing), array("Q")
    order = list(asked) if closed else sorted(asked)
    began, firsts, lasts = {}, {}, {}
    ahead = 0

    def send(now: float) -> None:
        nonlocal ahead
        _, prompt, output = order[ahead]
        began[ahead] = now
        fleet.add(0, ahead, prompt, output, keys, now)
        ahead += 1

    start = order[0][0]
    while ahead < min(closed, len(order)):
        send(start)
    while len(lasts) < len(order):
        more = ahead < len(order)
        limit = order[ahead][0] if more and not closed else float("inf")
        while fleet.advance(limit):
            firsts.update(dict.fromkeys(fleet.first_tokens, fleet.now))
            for number, _ in fleet.finished:
                lasts[number] = fleet.now
                if closed and ahead < len(order):
                    send(fleet.now)
        if more and not closed:
            send(limit)
    return [Times(began[n], firsts[n], lasts[n], order[n][2]) for n in range(len(order))]


def logged(folder: Path, run: Logged) -> dict[str, tuple[float, float]]:
    """(model, real) means of a logged run."""
    timing = fit(
        folder,
        run.name,
        layers=run.layers,
        blocks=run.blocks,
        seqs=run.seqs,
        cpu_s=run.host_s + run.reduce_s,
        reduce_s=run.token_reduce_s,
    )
    log = run_log(folder, run.name)
    real = means(
        [
            Times(row["queued_ts"], row["first_token_ts"], row["last_token_ts"], row["output_toks"])
            for row in log
        ]
    )
    asked = [(row["queued_ts"], int(row["input_toks"]), int(row["output_toks"])) for row in log]
    model = means(play(timing, asked))
    return {name: (model[name], real[name]) for name in real}


class Row(NamedTuple):
    """A measured row of the tables; times in seconds."""

    model: str
    gpu: str
    gpus: int
    weight_bytes: int
    prompt: int
    output: int
    concurrency: int
    ttft: float
    tpot: float


def measured(folder: Path) -> Iterator[Row]:
    """Rows of models whose shape is known: bf16 Qwen3-32B, FP8 Llama-3.1-70B."""
    with gzip.open(folder / "vllm_e2e_h100_h200_silicon.csv.gz", "rt") as lines:
        for row in csv.DictReader(lines):
            is_fp8 = row["precision"] == "fp8"
            if row["model_path"] not in SHAPES or is_fp8 != ("70B" in row["model_path"]):
                continue
            yield Row(
                row["model_path"],
                row["system"],
                int(float(row["tp_size"])),
                1 if is_fp8 else 2,
                int(row["isl"]),
                int(row["osl"]),
                int(float(row["batch_size"])),
                float(row["silicon_ttft_ms"]) * 1e-3,
                float(row["silicon_tpot_ms"]) * 1e-3,
            )


def modelled(folder: Path, row: Row) -> dict[str, float]:
    """Means of the model at a row's concurrency, without its first round."""
    timing = dense(folder, row.model, row.gpu, row.gpus, row.weight_bytes)
    chance = Chance(row.prompt * 131 + row.output * 7 + row.concurrency)

    def length(most: int) -> int:
        return max(2, round(most * (1.0 - JITTER * chance.uniform())))

    count = ROUNDS * row.concurrency
    asked = [(0.0, length(row.prompt), length(row.output)) for _ in range(count)]
    return means(play(timing, asked, row.concurrency)[row.concurrency :])


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's."""
    ranks = [np.argsort(np.argsort(each)) for each in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def tables(bench: Bench, folder: Path) -> None:
    """Bars of the measured tables, one a model."""
    for model in SHAPES:
        rows = [row for row in measured(folder) if row.model == model]
        if bench.args.quick:
            rows = rows[::6]
        found = [modelled(folder, row) for row in rows]
        errors = [each["tpot"] / row.tpot - 1 for each, row in zip(found, rows, strict=True)]
        name = model.rpartition("/")[2].lower()
        value = sum(map(abs, errors)) / len(errors)
        bench.bar(f"tpot_error_{name}", value, "ratio", MAX_TPOT_ERROR, scaled=False)
        bench.tell(f"rows_{name}", len(rows), "rows")
        bench.tell(f"tpot_bias_{name}", sum(errors) / len(errors), "ratio")
        bench.tell(f"tpot_worst_{name}", max(map(abs, errors)), "ratio")
        for what in ("tpot", "ttft"):
            real = [getattr(row, what) for row in rows]
            rank = rank_correlation([each[what] for each in found], real)
            bench.tell(f"{what}_rank_{name}", rank, "Spearman")


def captures(bench: Bench) -> None:
    """The tests that replay a real engine's traffic, as a bar."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CAPTURES]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )
    line = (done.stdout.strip().splitlines() or [""])[-1]
    differ = 0.0 if done.returncode == 0 and "passed" in line else 1.0
    bench.bar("block_accounting_differs", differ, "captures", 0.0, scaled=False)
    print(f"# {line}")


def main(argv: Sequence[str] | None = None) -> int:
    bench = Bench("engine_model", "does the modelled engine behave like real vLLM?", argv)
    traces = find_traces(os.environ, Path(__file__))
    folder = traces / "engine-validation" if traces else None
    is_there = folder is not None and folder.is_dir()
    absent = "" if is_there else "no engine-validation traces: set WARMLANE_TRACES"
    if folder is not None and is_there:
        for run in RUNS:
            for name, (model, real) in logged(folder, run).items():
                bench.bar(
                    f"{name}_error_{run.name}",
                    abs(model / real - 1),
                    "ratio",
                    MAX_ERROR,
                    scaled=False,
                )
                bench.tell(f"{name}_model_{run.name}", model, f"s (real: {real:.4g})")
        tables(bench, folder)
    else:
        print(f"# VOID: {absent}", file=sys.stderr)
        names = [f"{what}_error_{run.name}" for run in RUNS for what in ("ttft", "tpot", "e2e")]
        for name in [*names, "tpot_error"]:
            bench.bar(name, None, "ratio", MAX_ERROR, scaled=False, why_void=absent)
    captures(bench)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
