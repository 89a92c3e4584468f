"""The comparison of policies: its cells, what it keeps, and how it judges."""

from __future__ import annotations

import importlib
import json
from math import log
from pathlib import Path
from typing import Any

import pytest

from warmlane.router.registry import POLICIES, build_parts
from warmlane.router.sim.lab_run import Done, Run
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
    assert {*bench.POLICIES} <= {*POLICIES} and {*bench.PUBLISHED.values()} <= {*bench.POLICIES}
    for load in (0.6, 1.0, 1.3):
        at = [cell for cell in found if cell.load == load]
        assert {cell.source for cell in at} == sources and {4, 8, 16} == {c.replicas for c in at}
    assert {cell.load for cell in bench.quick() + bench.tuning() + bench.ablation()} == {1.0}
    assert {cell.replicas for cell in bench.tuning()} == {4}
    assert {cell.source for cell in bench.tuning()} == sources
    assert all(cell in found for cell in bench.quick() + bench.tuning() + bench.ablation())
    assert sum("," in cell.profile for cell in bench.ablation()) == 2
    assert sum(bool(cell.world) for cell in found) == 2


def test_every_fleet_of_the_cells_has_a_measured_knee(bench: Any) -> None:
    """Of the committed file: the rule it tells, its bounds, and rates that grow with the fleet."""
    knees = importlib.import_module("benchmarks.policy_knees")
    of = importlib.import_module("benchmarks.policy_cells")
    told = json.loads(of.KNEES.read_text())
    every = {fleet.name: fleet for fleet in (*of.fleets(), *of.special())}
    assert told["rule"] == knees.RULE and {*told["fleets"]} == {*every}
    for name, row in told["fleets"].items():
        (low, low_s), (high, high_s), bar = row["below"], row["above"], 2 * row["idle_ttft_s"]
        assert row["idle_rate"] < low < row["knee"] < high <= 1.03 * low, name
        assert low_s < bar + 1e-4 and high_s > bar - 1e-4, name
    for source, what in bench.SOURCES.items():
        eight = f"{source}, 8 x {what.profile}, approximate"
        sixteen = f"{source}, 16 x {what.profile}, exact"
        assert told["fleets"][eight]["knee"] < told["fleets"][sixteen]["knee"], source
    for cell in bench.cells():
        knee = told["fleets"][cell.name.partition(f", {cell.load:g} of the knee")[0]]["knee"]
        assert cell.rate == pytest.approx(cell.load * knee, rel=1e-3)


def test_a_knee_is_found_by_halving() -> None:
    knees = importlib.import_module("benchmarks.policy_knees")

    def queue(rate: float) -> float:
        """Mean time in M/M/1 with 0.1 s of work: twice the idle one at 5 a second."""
        return 0.1 / (1.0 - 0.1 * rate) if rate < 9.9 else rate

    found = knees.find(queue, 0.25)
    assert found.knee == pytest.approx(5.0, rel=0.03)
    assert found.idle.ttft_s == pytest.approx(0.1, rel=0.03) and found.below.rate < found.above.rate
    assert knees.find(queue, 40.0).knee == pytest.approx(5.0, rel=0.03), "from beyond the knee"
    with pytest.raises(knees.NoKnee, match="idle"):
        knees.find(lambda rate: 0.1, 1.0)
    with pytest.raises(knees.NoKnee, match="still changes"):
        knees.find(lambda rate: rate, 1.0)


def test_the_knee_of_a_small_generator(tiny: Any, bench: Any) -> None:
    """Runs of the lab: TTFT rises over loads, and twice the replicas carry about twice as much."""
    knees = importlib.import_module("benchmarks.policy_knees")
    few = bench.SOURCES["tiny"]._replace(file="shared-prefix:groups=8,prompts=15,output=50")
    bench.SOURCES["tiny"] = few
    cells = importlib.import_module("benchmarks.policy_cells")
    found = {
        count: knees.measure((cells.Fleet("tiny", cells.QWEN, count, "approximate"), ""))[1]
        for count in (1, 2)
    }
    for each in found.values():
        assert each.idle.ttft_s < each.below.ttft_s < 2 * each.idle.ttft_s <= each.above.ttft_s
        assert each.above.rate < 1.031 * each.below.rate
    assert 0.7 < log(found[2].knee / found[1].knee, 2) < 1.6


def test_scores_and_bars(bench: Any) -> None:
    """Two cells: best in one; in the other 1.5 x the best, in every sample."""
    slow = {name: [of(1.0, 1.04), of(2.0, 2.04)] for name in bench.ROWS}
    table = {
        "a": slow | {"default": [of(0.5, 0.54), of(1.0, 1.04)]},
        "b": slow | {"default": [of(1.5, 1.54), of(3.0, 3.04)]},
    }
    mine = bench.score(table, "default")
    assert mine["ttft"]["geometric_mean"] == pytest.approx(1.5**0.5)
    assert mine["ttft"]["worst"] == pytest.approx(1.5)
    assert mine["ttft"]["worst_cell"] == "b" and mine["ttft"]["lost"] == ["b"]
    gap = {"mean": 0.25, "worst": 0.5, "worst_cell": "b"}  # in one of two samples: may be chance
    assert mine["goodput_gap"] == gap | {"lost": []}
    met = {name: ok for name, _, _, ok in bench.judge(table, mine)}
    ranked = {name: ok for name, ok in met.items() if not name.startswith("ttft_over_")}
    assert ranked == dict.fromkeys(ranked, False) | {"goodput_gap_worst": True}
    assert "ttft_p50_over_round_robin" in ranked
    one = {"a": table["a"]}
    met = {name: ok for name, _, _, ok in bench.judge(one, bench.score(one, "default"))}
    assert all(met[name] for name in ranked)
    assert "| default | 1.22 (1.50) |" in bench.markdown([mine], "")


def test_goodput_that_is_missed_in_every_sample_is_lost(bench: Any) -> None:
    good, bad = [of(1.0, 1.04)] * 9, of(3.0, 3.04)
    table = {"a": {name: [*good] for name in bench.ROWS} | {"default": [*good[:-3], *[bad] * 3]}}
    mine = bench.score(table, "default")
    assert mine["goodput_gap"]["lost"] == [], "a third, give or take a third"
    table["a"]["default"] = [*good[:-7], *[bad] * 7]
    mine = bench.score(table, "default")
    assert mine["goodput_gap"]["lost"] == ["a"]
    assert ("goodput_gap_worst", False) in [(row[0], row[3]) for row in bench.judge(table, mine)]


def test_the_default_against_one_policy_counts_cells_with_reuse(bench: Any) -> None:
    report = importlib.import_module("benchmarks.policy_report")
    reuse, none = (next(c.name for c in bench.cells() if c.reuse is r) for r in (True, False))
    slow = {name: [of(2.0, 3.0)] for name in bench.ROWS}
    table = {reuse: slow | {"default": [of(1.0, 2.0)]}, none: slow}
    assert report.against(table, "dynamo") == pytest.approx(0.5)
    table[reuse]["dynamo-published"] = [of(1.25, 3.0)]  # the bar is about this row
    bars = {bar[0]: bar for bar in report.judge(table, report.score(table, "default"))}
    assert bars["ttft_over_dynamo-published"][1:] == (pytest.approx(0.8), 0.65, False)
    assert "ttft_over_dynamo" not in bars
    assert report.beside(table) == {"ttft_over_dynamo": pytest.approx(0.5)}


def test_the_page_holds_the_committed_result(bench: Any) -> None:
    told = json.loads((ROOT / "benchmarks" / "results" / "policies.json").read_text())
    page = (ROOT / "docs" / "policies.md").read_text()
    assert bench.BEGIN + bench.markdown(told["scores"], told["note"]) + bench.END in page


@pytest.fixture
def tiny(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`policy_runs` with a cache of its own, and a small cell."""
    runs = importlib.import_module("benchmarks.policy_runs")
    monkeypatch.setattr(runs, "CACHE", tmp_path)
    cell = bench.quick()[-1]._replace(name="tiny", source="tiny", replicas=2, rate=0.3)
    small = bench.SOURCES["shared-prefix"]._replace(file="shared-prefix:groups=2,system=64")
    monkeypatch.setitem(bench.SOURCES, "tiny", small)
    return runs, cell


def test_a_finished_run_is_kept_under_the_fingerprint_of_its_policy(tiny: Any) -> None:
    runs, cell = tiny
    path = runs.kept_at(cell, 0, "round-robin", "f")
    assert runs.kept(path) is None
    assert runs.work(runs.Job(cell, 0, (("round-robin", "f"),), "")) == 1
    assert runs.kept(path).requests == 10
    assert runs.kept(runs.kept_at(cell, 0, "round-robin", "another")) is None
    assert runs.kept(runs.kept_at(cell, 1, "round-robin", "f")) is None
    path.write_text('{"of": "another version"}')
    assert runs.kept(path) is None


def test_a_fingerprint_tells_policies_and_parameters_apart(tiny: Any) -> None:
    runs, _ = tiny
    names = ("default", "default:interference=0", "default:overload=0", "dynamo")
    names += ("dynamo:overlap_weight=4",)
    prints = [runs.fingerprint(name)[1] for name in names]
    assert len({*prints}) == len(prints)
    assert runs.fingerprint("default")[1] == prints[0]


def test_parameters_are_set_on_the_other_half(tiny: Any, bench: Any) -> None:
    _, cell = tiny
    assert bench.halves(5) == ([0, 1], [2, 3, 4])
    choice = bench.variants("dynamo")
    assert choice[0] == "dynamo" and len(choice) > 2 and bench.variants("random") == ["random"]

    class Kept:
        def of(self, cell: Any, sample: int, policy: str) -> Figures:
            return of(0.5 if policy == choice[2] and sample > 2 else 1.0, 2.0)

    assert bench.tune(Kept(), [cell], [3, 4], "dynamo") == choice[2]
    assert bench.tune(Kept(), [cell], [0, 1], "dynamo") == "dynamo"


def test_every_setting_builds(bench: Any) -> None:
    runs = importlib.import_module("benchmarks.policy_runs")
    fleet = runs.fleet_of("qwen3-32b/2xh100", 2)
    names = [each for policy in bench.KNOBS for each in bench.variants(policy)]
    names += [f"default:{fields}" for fields in bench.WITHOUT.values()]
    names += [each for wrong in bench.WRONGS for each in bench.wrong_policies(wrong)]
    for each in names:
        build_parts(runs.pool_of(each, fleet), each)


def test_wrong_beliefs_are_of_the_same_workloads(bench: Any) -> None:
    sources = [cell.source for cell in bench.wrong_cells(bench.WRONGS[0])]
    for wrong in bench.WRONGS:
        found = bench.wrong_cells(wrong)
        assert [cell.source for cell in found] == sources
        assert all(cell.world == wrong.world and cell.load == 0.6 for cell in found)


def test_tables_of_left_out_terms_and_wrong_beliefs(bench: Any) -> None:
    fast, slow = [of(1.0, 2.0)], [of(1.5, 3.0)]
    rows = bench.left_out({"a": {"default": fast, "default:copy=0": slow}}, {"g": "default:copy=0"})
    assert rows[0]["ttft"] == {"geometric_mean": 1.5, "worst": 1.5, "worst_cell": "a"}
    assert "| g | 1.500 (1.50) | 1.500 (1.50) | 1.500 (1.50) | a |" in bench.left_out_markdown(rows)
    right = {"a": {"default": fast, "other": slow}}
    wrong = {"a": {"default": slow, "other": fast}}
    told = bench.wrong_rows({"right": right, "wrong": wrong}, {"right": "right", "wrong": "right"})
    text = bench.wrong_markdown(told)
    assert "| right | 1.00 (1.00) | 0.67 (0.67) |" in text
    assert "| wrong | 1.50 (1.50) | 1.50 (1.50) |" in text
