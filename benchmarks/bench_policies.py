"""Which policy decides best, over many workloads, fleets and loads? In the lab, not on GPUs.

    make bench-policies             # all cells; QUICK=1: each workload once, two samples
    PYTHONPATH=. python -m benchmarks.bench_policies --quick --limit-s 100

Every policy meets the same samples of each cell (`policy_cells.py`). Parameters are set on one half
of the samples of some cells and scored on the other half, and the other way round (`--quick`: all
at what is published). Ours is scored as it ships; what the same would set it to is in the results.
A finished run is kept in .cache/policies/ until its policy decides differently (`policy_runs.py`),
so a stopped benchmark goes on where it was. Writes
benchmarks/results/policies.json and the tables of docs/policies.md. Good is: the default's row
meets the bars below the table. A cell counts as lost only where the paired 95 % interval of the
ratio to its best policy excludes the bar. Traces are looked for as docs/workloads.md says; cells
without their trace are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from math import log
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

from benchmarks.bars import machine
from benchmarks.policy_cells import (
    KNOBS,
    POLICIES,
    PUBLISHED,
    ROWS,
    SAMPLES,
    SOURCES,
    WITHOUT,
    WRONG_AGAINST,
    WRONGS,
    Cell,
    Wrong,
    ablation,
    cells,
    quick,
    tuning,
    wrong_cells,
)
from benchmarks.policy_report import (
    Table,
    beside,
    brief,
    judge,
    left_out,
    left_out_markdown,
    markdown,
    score,
    wrong_markdown,
    wrong_rows,
)
from benchmarks.policy_runs import CACHE, ROOT, Job, code_digest, fingerprint, kept, kept_at, work
from warmlane.router.sim.replay_report import Figures
from warmlane.router.sim.traces import find_traces

RESULTS = ROOT / "benchmarks" / "results" / "policies.json"
PAGE = ROOT / "docs" / "policies.md"
BEGIN, END = "<!-- table: benchmarks/results/policies.json -->\n", "<!-- end -->\n"
LEFT_OUT = "<!-- table: left out -->\n"
WRONG = "<!-- table: wrong -->\n"
QUICK_SAMPLES = 2
FEW_SAMPLES = 2  # of the tables beside the main one

Prints = dict[str, str]  # policy: its fingerprint


class Late(Exception):
    """The time given is over; what is done is kept."""


class Runs:
    """Makes runs that are not there yet, on some processes, until the time is over."""

    def __init__(self, pool: Pool, prints: Prints, traces: str, until: float) -> None:
        self._pool, self.prints, self._traces, self._until = pool, prints, traces, until

    def make(self, what: str, wanted: Iterable[tuple[Cell, int, Sequence[str]]]) -> None:
        """(cell, sample, policies) each. Raises Late."""
        jobs = []
        for cell, sample, policies in wanted:
            left = tuple(
                (each, self.prints[each])
                for each in policies
                if kept(kept_at(cell, sample, each, self.prints[each])) is None
            )
            if left:
                jobs.append(Job(cell, sample, left, self._traces))
        began = time.monotonic()
        for number, _ in enumerate(self._pool.imap_unordered(work, jobs), 1):
            now = time.monotonic()
            print(
                f"\r{what}: {number}/{len(jobs)} samples, {now - began:.0f} s ",
                end="",
                file=sys.stderr,
            )
            if now > self._until:
                raise Late
        print(file=sys.stderr)

    def rows(self, cell: Cell, policies: Sequence[str]) -> dict[str, list[Figures]]:
        """The first FEW_SAMPLES of runs that were made before."""
        found = {each: [self.of(cell, n, each) for n in range(FEW_SAMPLES)] for each in policies}
        return {each: [f for f in figures if f is not None] for each, figures in found.items()}

    def of(self, cell: Cell, sample: int, policy: str) -> Figures | None:
        """What a finished run left."""
        return kept(kept_at(cell, sample, policy, self.prints[policy]))


def variants(policy: str) -> list[str]:
    """A policy with each setting it may choose from; the first is its own."""
    return [f"{policy}:{each}" if each else policy for each in KNOBS.get(policy, ("",))]


def halves(samples: int) -> tuple[list[int], list[int]]:
    """Two halves of the samples."""
    return list(range(samples // 2)), list(range(samples // 2, samples))


def tune(runs: Runs, chosen: Sequence[Cell], samples: Sequence[int], policy: str) -> str:
    """The variant with the least mean TTFT x mean E2E, geometric means over cells and samples."""

    def cost(variant: str) -> float:
        found = [runs.of(cell, sample, variant) for cell in chosen for sample in samples]
        there = [each for each in found if each is not None]
        assert len(there) == len(found), "made before"
        return sum(log(max(1e-9, each.ttft.mean)) + log(each.e2e.mean) for each in there)

    return min(variants(policy), key=cost)


def collect(
    runs: Runs, chosen: Sequence[Cell], samples: int, settings: dict[str, list[str]]
) -> Table:
    """Cells of which every run is there. settings: the variant for each sample, by policy."""
    table: Table = {}
    for cell in chosen:
        rows: dict[str, list[Figures]] = {}
        for policy in ROWS:
            found = [runs.of(cell, n, settings[policy][n]) for n in range(samples)]
            there = [each for each in found if each is not None]
            if len(there) == samples:
                rows[policy] = there
        if len(rows) == len(ROWS):
            table[cell.name] = rows
    return table


def write_table(begin: str, text: str) -> None:
    """Put a table between its marks on the page."""
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(before + begin + text + END + rest.split(END, 1)[1])


def wrong_policies(wrong: Wrong) -> list[str]:
    """The default with what it is wrong about, and the others."""
    return [f"default:{wrong.fields}" if wrong.fields else "default", *WRONG_AGAINST]


def tables_beside(runs: Runs, is_there: Callable[[Cell], bool]) -> dict[str, object]:
    """The tables of left-out terms and of wrong beliefs. Raises Late."""
    terms = {name: f"default:{fields}" for name, fields in WITHOUT.items()}
    ground = [cell for cell in ablation() if is_there(cell)]
    wanted = ["default", *terms.values()]
    runs.make("terms", [(c, n, wanted) for c in ground for n in range(FEW_SAMPLES)])
    runs.make(
        "wrong beliefs",
        [
            (cell, n, wrong_policies(wrong))
            for wrong in WRONGS
            for cell in wrong_cells(wrong)
            if is_there(cell)
            for n in range(FEW_SAMPLES)
        ],
    )
    table = {cell.name: runs.rows(cell, wanted) for cell in ground}
    found: dict[str, Table] = {}
    base: dict[str, str] = {}
    for wrong in WRONGS:
        own = wrong_policies(wrong)
        rows = {c.source: runs.rows(c, own) for c in wrong_cells(wrong) if is_there(c)}
        found[wrong.name] = {
            source: {each.partition(":")[0]: figures for each, figures in row.items()}
            for source, row in rows.items()
        }
        base[wrong.name] = "nothing, exact view" if wrong.view else "nothing"
    if not ground:  # no traces
        return {}
    told = {"left_out": left_out(table, terms), "wrong": wrong_rows(found, base)}
    write_table(LEFT_OUT, left_out_markdown(told["left_out"]))
    write_table(WRONG, wrong_markdown(told["wrong"]))
    return dict(told)


def report(table: Table, samples: int, told: dict[str, object]) -> int:
    """Print, write JSON and the page. Exit status."""
    scores = [score(table, policy) for policy in ROWS]
    note = (
        f"{len(table)} of {len(cells())} cells x {samples} samples; ratios to the best policy of"
        " each cell: geometric mean (worst). Lost: the paired 95 % interval lies above 1.15 of the"
        " best mean TTFT."
    )
    head = {"machine": machine(), "samples": samples, "note": note, "scores": scores}
    bars = judge(table, scores[0])
    head["bars"] = [
        {"name": name, "value": value, "bar": bar, "verdict": "ok" if met else "short"}
        for name, value, bar, met in bars
    ]
    head["without_bar"] = beside(table)
    RESULTS.write_text(json.dumps(head | told | {"cells": brief(table)}, indent=1) + "\n")
    text = markdown(scores, note)
    write_table(BEGIN, text)
    print(text)
    for name, value, bar, met in bars:
        print(f"{name} {value:.3f} x {bar} {'ok' if met else 'short'}")
    for name, value in beside(table).items():
        print(f"{name} {value:.3f} (parameters set for these cells; no bar)")
    return 0 if all(met for *_, met in bars) else 1


def prints_of(pool: Pool, policies: Sequence[str]) -> Prints:
    """Fingerprints, kept while no code changes."""
    path = CACHE / f"fingerprints-{code_digest()}.json"
    known: Prints = json.loads(path.read_text()) if path.exists() else {}
    left = [policy for policy in policies if policy not in known]
    for number, (policy, found) in enumerate(pool.imap_unordered(fingerprint, left), 1):
        known[policy] = found
        print(f"\rfingerprints: {number}/{len(left)} ", end="", file=sys.stderr)
    path.write_text(json.dumps(known))
    print(file=sys.stderr)
    return known


def measure(args: argparse.Namespace, pool: Pool, traces: Path | None) -> int:
    chosen, samples = (quick(), QUICK_SAMPLES) if args.quick else (cells(), args.samples)
    published = args.quick or args.published

    def is_there(cell: Cell) -> bool:
        file = SOURCES[cell.source].file
        return ":" in file or bool(traces and (traces / file).exists())

    for cell in chosen:
        if not is_there(cell):
            print(f"left out, its trace is not here: {cell.name}")
    there = [cell for cell in chosen if is_there(cell)]
    all_variants = [] if published else [each for policy in KNOBS for each in variants(policy)]
    others = [f"default:{fields}" for fields in WITHOUT.values()]
    others += [each for wrong in WRONGS for each in wrong_policies(wrong)]
    wanted = [*POLICIES, *all_variants, *([] if published else others)]
    prints = prints_of(pool, list(dict.fromkeys(wanted)))
    runs = Runs(pool, prints, str(traces), time.monotonic() + args.limit_s)
    settings = {row: [PUBLISHED.get(row, row)] * samples for row in ROWS}
    more: dict[str, object] = {}
    tuned: dict[str, list[str]] = {}
    try:
        if not published:
            ground = [cell for cell in tuning() if is_there(cell)]
            runs.make("knobs", [(c, n, all_variants) for c in ground for n in range(samples)])
            first, second = halves(samples)
            for policy in KNOBS:
                one, two = tune(runs, ground, second, policy), tune(runs, ground, first, policy)
                tuned[policy] = list(dict.fromkeys([one, two]))
                if policy != "default":  # its row is what ships, whatever this would choose
                    settings[policy] = [one] * len(first) + [two] * len(second)
        runs.make(
            "cells",
            [
                (cell, n, list(dict.fromkeys(settings[row][n] for row in ROWS)))
                for cell in (*there[::3], *there[1::3], *there[2::3])  # a stop leaves some of each
                for n in range(samples)
            ],
        )
        if not published:
            more = tables_beside(runs, is_there)
    except Late:
        print("stopped: the same command goes on from here", file=sys.stderr)
    table = collect(runs, there, samples, settings)
    if not table:
        print("no cell is complete yet")
        return 1
    return report(table, samples, {"settings": tuned} | more)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of the cells, two samples")
    parser.add_argument(
        "--published", action="store_true", help="all cells, every policy at its published settings"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, choices=range(2, SAMPLES + 1))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit-s", type=float, default=7200.0, help="stop after so many seconds")
    parser.add_argument("--fresh", action="store_true", help="forget the kept runs first")
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    if args.fresh:
        for path in CACHE.glob("*.json"):
            path.unlink()
    with get_context("spawn").Pool(max(1, args.processes)) as pool:
        return measure(args, pool, find_traces(os.environ, Path(__file__)))


if __name__ == "__main__":
    sys.exit(main())
