"""Which policy decides best, over many workloads, fleets and loads? In the lab, not on GPUs.

    make bench-policies             # all cells; QUICK=1: each workload once, two samples
    PYTHONPATH=. python -m benchmarks.bench_policies --quick --limit-s 100

Every policy meets the same samples of each cell (`policy_cells.py`) at its published parameters;
none is tuned here. A finished run is kept in .cache/policies/ under a key that holds the code it
depends on, so a stopped benchmark goes on where it was. Writes benchmarks/results/policies.json
and the table of docs/policies.md. Good is: the default's row meets the bars below the table. A
cell counts as lost only where the paired 95 % interval of the ratio to its best policy excludes
the bar. Traces are looked for as docs/workloads.md says; cells without their trace are left out
and named.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from math import exp, log
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.bars import machine
from benchmarks.policy_cells import SAMPLES, SOURCES, Cell, cells, quick
from warmlane._core.hashing import digest
from warmlane.router.sim.lab import Lab, LabOptions
from warmlane.router.sim.replay import fleet_of, pool_for
from warmlane.router.sim.replay_report import Figures, Slo, figures, paired
from warmlane.router.sim.replay_workloads import window, workload
from warmlane.router.sim.traces import Workload, find_traces

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "policies"
RESULTS = ROOT / "benchmarks" / "results" / "policies.json"
PAGE = ROOT / "docs" / "policies.md"
BEGIN, END = "<!-- table: benchmarks/results/policies.json -->\n", "<!-- end -->\n"
POLICIES = (
    *("default", "round-robin", "least-requests", "llmd-weighted", "llmd-affinity", "dynamo"),
    *("lmetric", "lmetric-queued", "sglang", "random", "power-of-two", "bounded-hash", "aibrix"),
    *("least-ttft", "preble", "dualmap"),
)
MAX_PROMPT = 120_000
QUICK_SAMPLES = 2
WARM_UP = 0.25  # of a trace's time, before each window
# What a run depends on besides its cell: a change of any of these files voids all kept runs.
CODE = ("scorers/*.py", "router/*.py", "router/sim/*.py", "src_ext/*.pyx", "src_ext/*.h")
BARS = {
    "ttft": ("mean TTFT, geometric mean, worst", 1.04, 1.15),
    "ttft_p99": ("p99 TTFT, worst", 0.0, 1.20),
    "e2e": ("mean E2E, geometric mean, worst", 1.04, 1.15),
}
MAX_GOODPUT_GAP = 0.06
# The default's mean TTFT over theirs in cells with reuse, geometric mean: at most.
AGAINST = {"dynamo": 0.65, "llmd-weighted": 0.92, "llmd-affinity": 0.96}


class Job(NamedTuple):
    """One sample of one cell, for the policies that nobody has run yet."""

    cell: Cell
    sample: int
    policies: tuple[str, ...]
    traces: str
    code: str


def kept_at(cell: Cell, sample: int, policy: str, code: str) -> Path:
    """Where the figures of a run are kept."""
    key = digest(f"{cell}|{sample}|{policy}|{code}|{MAX_PROMPT}|{WARM_UP}".encode())
    return CACHE / f"{key:016x}.json"


@lru_cache(maxsize=4)
def _whole(name: str, seed: int) -> Workload:
    return workload(name, seed=seed)


def _sample(job: Job) -> tuple[Workload, float]:
    """The workload, and from when on (seconds of the lab) its requests are judged.

    A window comes with the WARM_UP before it: a fleet with empty caches says little of reuse. The
    judged parts of two windows never overlap.
    """
    source = SOURCES[job.cell.source]
    name = source.file if ":" in source.file else str(Path(job.traces) / source.file)
    if not source.windows:
        return _whole(name, job.sample + 1), 0.0
    whole = _whole(name, 1)
    begin = WARM_UP + job.sample * (1.0 - WARM_UP) / SAMPLES
    made = window(whole, begin - WARM_UP, begin + (1.0 - WARM_UP) / SAMPLES)
    starts = [session.start_s for session in whole.sessions]
    at_s = min(starts) + begin * (max(starts) - min(starts))
    return made, (at_s - min(each.start_s for each in made.sessions)) / job.cell.rate


def work(job: Job) -> int:
    """Run and keep; how many runs."""
    cell, (made, since_s) = job.cell, _sample(job)
    options = LabOptions(
        fleet=fleet_of(cell.profile, cell.replicas),
        rate=cell.rate,
        view=cell.view,
        max_prompt=MAX_PROMPT,
        seed=job.sample + 1,
    )
    for policy in job.policies:
        logging.getLogger("warmlane.watchdog").setLevel(logging.ERROR)  # of modelled replicas
        run = Lab(made, pool_for(policy, options.fleet), options).run()
        found = figures(run, Slo(), since_s)
        if found.fallbacks:
            raise RuntimeError(f"{policy}: its advice failed {found.fallbacks} times in {cell}")
        path = kept_at(cell, job.sample, policy, job.code)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(msgspec.json.encode(found))
        part.replace(path)
    return len(job.policies)


def code_digest() -> str:
    """The state of everything in CODE."""
    files = sorted(path for glob in CODE for path in ROOT.glob(glob))
    return f"{digest(b''.join(path.read_bytes() for path in files)):016x}"


Table = dict[str, dict[str, list[Figures]]]  # cell, policy, samples


def collect(chosen: Sequence[Cell], samples: int, code: str) -> Table:
    """Cells of which every run is there."""
    table: Table = {}
    for cell in chosen:
        rows: dict[str, list[Figures]] = {}
        for policy in POLICIES:
            paths = [kept_at(cell, sample, policy, code) for sample in range(samples)]
            if all(path.exists() for path in paths):
                rows[policy] = [msgspec.json.decode(p.read_bytes(), type=Figures) for p in paths]
        if len(rows) == len(POLICIES):
            table[cell.name] = rows
    return table


def _values(rows: dict[str, list[Figures]], policy: str, what: str) -> list[float]:
    read = {
        "ttft": lambda each: each.ttft.mean,
        "ttft_p50": lambda each: each.ttft.p50,
        "ttft_p99": lambda each: each.ttft.p99,
        "e2e": lambda each: each.e2e.mean,
    }[what]
    return [max(1e-9, read(each)) for each in rows[policy]]


def _middle(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))


def score(table: Table, policy: str) -> dict[str, Any]:
    """Ratios of one policy to the best of each cell; the goodput it lacks there."""
    told: dict[str, Any] = {"policy": policy}
    for what, (_, _, worst) in BARS.items():
        ratios: dict[str, float] = {}
        lost: list[str] = []
        for name, rows in table.items():
            best = min(POLICIES, key=lambda each: _middle(_values(rows, each, what)))
            found = paired(_values(rows, policy, what), _values(rows, best, what))
            assert found is not None, "values are above 0"
            ratios[name] = found.ratio
            if found.ratio > worst and (found.low is None or found.low > worst):
                lost.append(name)
        told[what] = {
            "geometric_mean": _middle(list(ratios.values())),
            "worst": max(ratios.values()),
            "worst_cell": max(ratios, key=lambda name: ratios[name]),
            "lost": lost,
        }
    gaps: dict[str, float] = {}
    for name, rows in table.items():
        means = {p: sum(f.goodput for f in rows[p]) / len(rows[p]) for p in POLICIES}
        gaps[name] = max(means.values()) - means[policy]
    told["goodput_gap"] = {"mean": sum(gaps.values()) / len(gaps), "worst": max(gaps.values())}
    return told


def markdown(scores: Sequence[dict[str, Any]], note: str) -> str:
    """The table of docs/policies.md."""
    lines = [
        "| policy | mean TTFT | p99 TTFT | mean E2E | goodput gap, mean (worst) | cells lost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in sorted(scores, key=lambda row: row["ttft"]["geometric_mean"]):
        cells_ = [each["policy"]]
        for what in BARS:
            found = each[what]
            cells_.append(f"{found['geometric_mean']:.2f} ({found['worst']:.2f})")
        gap = each["goodput_gap"]
        cells_.append(f"{gap['mean']:.3f} ({gap['worst']:.3f})")
        cells_.append(str(len(each["ttft"]["lost"])))
        lines.append("| " + " | ".join(cells_) + " |")
    return "\n".join([*lines, "", note, ""])


def judge(mine: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """The default's bars: name, value, bar, met."""
    bars: list[tuple[str, float, float, bool]] = []
    for what, (_, middle, worst) in BARS.items():
        found = mine[what]
        if middle:
            value = found["geometric_mean"]
            bars.append((f"{what}_geometric_mean", value, middle, value <= middle))
        bars.append((f"{what}_worst", found["worst"], worst, not found["lost"]))
    gap = mine["goodput_gap"]["worst"]
    bars.append(("goodput_gap_worst", gap, MAX_GOODPUT_GAP, gap <= MAX_GOODPUT_GAP))
    return bars


def against(table: Table, policy: str) -> float:
    """The default's mean TTFT over a policy's, geometric mean over the cells with reuse."""
    with_reuse = {cell.name for cell in cells() if cell.reuse}
    ratios = [
        _middle(_values(rows, "default", "ttft")) / _middle(_values(rows, policy, "ttft"))
        for name, rows in table.items()
        if name in with_reuse
    ]
    return _middle(ratios) if ratios else float("nan")


def report(table: Table, samples: int, total: int) -> int:
    """Print, write JSON and the page. Exit status."""
    scores = [score(table, policy) for policy in POLICIES]
    note = (
        f"{len(table)} of {total} cells x {samples} samples; ratios to the best policy of each"
        " cell: geometric mean (worst). Lost: the paired 95 % interval lies above 1.15 of the"
        " best mean TTFT."
    )
    told = {"machine": machine(), "samples": samples, "note": note, "scores": scores}
    brief = {
        name: {
            policy: {
                what: [round(value, 5) for value in _values(rows, policy, what)]
                for what in ("ttft", "ttft_p50", "ttft_p99", "e2e")
            }
            | {
                "goodput": [round(each.goodput, 4) for each in rows[policy]],
                "hit": [round(each.hit, 4) for each in rows[policy]],
            }
            for policy in POLICIES
        }
        for name, rows in table.items()
    }
    RESULTS.write_text(json.dumps(told | {"cells": brief}, indent=1) + "\n")
    text = markdown(scores, note)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + text + END + rest.split(END, 1)[1])
    print(text)
    status = 0
    bars = judge(scores[0])
    for policy, bar in AGAINST.items():
        value = against(table, policy)
        bars.append((f"ttft_over_{policy}", value, bar, value <= bar))
    for name, value, bar, met in bars:
        print(f"{name} {value:.3f} x {bar} {'ok' if met else 'short'}")
        status |= not met
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of the cells, two samples")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-s", type=float, default=7200.0, help="stop after so many seconds")
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    chosen, samples = (quick(), QUICK_SAMPLES) if args.quick else (cells(), SAMPLES)
    total, traces = len(cells()), find_traces(os.environ, Path(__file__))
    there = [
        cell
        for cell in chosen
        if ":" in (file := SOURCES[cell.source].file) or (traces and (traces / file).exists())
    ]
    for cell in chosen:
        if cell not in there:
            print(f"left out, its trace is not here: {cell.name}")
    code = code_digest()
    jobs = []
    for cell in there:
        for sample in range(samples):
            left = [p for p in POLICIES if not kept_at(cell, sample, p, code).exists()]
            if left:
                jobs.append(Job(cell, sample, tuple(left), str(traces), code))
    began = time.monotonic()
    with get_context("spawn").Pool(max(1, args.processes)) as pool:
        for number, _ in enumerate(pool.imap_unordered(work, jobs), 1):
            spent = time.monotonic() - began
            print(f"\r{number}/{len(jobs)} samples, {spent:.0f} s ", end="", file=sys.stderr)
            if spent > args.limit_s:
                print("stopped: the same command goes on from here", file=sys.stderr)
                break
    print(file=sys.stderr)
    table = collect(there, samples, code)
    if not table:
        print("no cell is complete yet")
        return 1
    return report(table, samples, total)


if __name__ == "__main__":
    sys.exit(main())
