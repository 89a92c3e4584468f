"""The comparison of policies: its cells, what it keeps, and how it judges."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from warmlane.router.registry import POLICIES
from warmlane.router.sim.lab import Done, Run
from warmlane.router.sim.replay_report import Figures, Slo, figures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module: it is no part of the package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.bench_policies")


def of(ttft: float, e2e: float) -> Figures:
    done = [Done(0.0, ttft, e2e, 100, 0, 2, 0, 0)]
    told = {"fallbacks": 0, "preemptions": 0, "makespan_s": 1.0, "failed": 0, "skipped": 0}
    return figures(Run(policy="", done=done, busy_s=[1.0], **told), Slo())


def test_cells_cover_what_was_promised(bench: Any) -> None:
    found, sources = bench.cells(), {*bench.SOURCES}
    assert len(found) >= 60 and len({cell.name for cell in found}) == len(found)
    assert {cell.source for cell in found} == sources
    assert {cell.replicas for cell in found} == {4, 8, 16}
    assert {cell.view for cell in found} == {"exact", "approximate"}
    assert {cell.source for cell in bench.quick()} == sources
    assert {*bench.POLICIES} <= {*POLICIES}


def test_scores_and_bars(bench: Any) -> None:
    """Two cells: best in one; in the other 1.5 x the best, in every sample."""
    slow = {name: [of(1.0, 1.04), of(2.0, 2.04)] for name in bench.POLICIES}
    table = {
        "a": slow | {"default": [of(0.5, 0.54), of(1.0, 1.04)]},
        "b": slow | {"default": [of(1.5, 1.54), of(3.0, 3.04)]},
    }
    mine = bench.score(table, "default")
    assert mine["ttft"]["geometric_mean"] == pytest.approx(1.5**0.5)
    assert mine["ttft"]["worst"] == pytest.approx(1.5)
    assert mine["ttft"]["worst_cell"] == "b" and mine["ttft"]["lost"] == ["b"]
    assert mine["goodput_gap"] == {"mean": 0.25, "worst": 0.5}
    met = {name: ok for name, _, _, ok in bench.judge(mine)}
    assert met == dict.fromkeys(met, False)
    assert all(ok for *_, ok in bench.judge(bench.score({"a": table["a"]}, "default")))
    assert "| default | 1.22 (1.50) |" in bench.markdown([mine], "")


def test_the_default_against_one_policy_counts_cells_with_reuse(bench: Any) -> None:
    reuse, none = (next(c.name for c in bench.cells() if c.reuse is r) for r in (True, False))
    slow = {name: [of(2.0, 3.0)] for name in bench.POLICIES}
    table = {reuse: slow | {"default": [of(1.0, 2.0)]}, none: slow}
    assert bench.against(table, "dynamo") == pytest.approx(0.5)


def test_the_page_holds_the_committed_result(bench: Any) -> None:
    told = json.loads((ROOT / "benchmarks" / "results" / "policies.json").read_text())
    page = (ROOT / "docs" / "policies.md").read_text()
    assert bench.BEGIN + bench.markdown(told["scores"], told["note"]) + bench.END in page


def test_a_finished_run_is_kept(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = bench.SOURCES
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(bench, "POLICIES", ("round-robin",))
    tiny = sources["shared-prefix"]._replace(file="shared-prefix:groups=2,system=64")
    monkeypatch.setitem(sources, "tiny", tiny)
    cell = bench.quick()[-1]._replace(name="tiny", source="tiny", replicas=2)
    assert bench.collect([cell], 1, "c") == {}
    assert bench.work(bench.Job(cell, 0, ("round-robin",), "", "c")) == 1
    (kept,) = bench.collect([cell], 1, "c")["tiny"]["round-robin"]
    assert kept.requests == 10
    assert bench.collect([cell], 1, "other code") == {}
