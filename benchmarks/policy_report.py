"""What the runs of `bench_policies` say: ratios to the best of each cell, bars, tables."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any

from benchmarks.policy_cells import cells
from warmlane.router.sim.replay_report import Figures, Interval, paired

BARS = {
    "ttft": ("mean TTFT, geometric mean, worst", 1.04, 1.15),
    "ttft_p99": ("p99 TTFT, worst", 0.0, 1.20),
    "e2e": ("mean E2E, geometric mean, worst", 1.04, 1.15),
}
MAX_GOODPUT_GAP = 0.06
MAX_P50_TO_ROUND_ROBIN = 1.03
# The default's mean TTFT over theirs in cells with reuse, geometric mean: at most.
AGAINST = {"dynamo-published": 0.65, "llmd-weighted": 0.92, "llmd-affinity": 0.96}
BESIDE = ("dynamo",)  # the same is told of these, without a bar: with parameters set for the cells

Rows = dict[str, list[Figures]]  # policy, samples
Table = dict[str, Rows]  # cell


def values(rows: Rows, policy: str, what: str) -> list[float]:
    """One figure of every sample: ttft, ttft_p50, ttft_p99, e2e."""
    read = {
        "ttft": lambda each: each.ttft.mean,
        "ttft_p50": lambda each: each.ttft.p50,
        "ttft_p99": lambda each: each.ttft.p99,
        "e2e": lambda each: each.e2e.mean,
    }[what]
    return [max(1e-9, read(each)) for each in rows[policy]]


def middle(numbers: Sequence[float]) -> float:
    """Geometric mean."""
    return exp(sum(map(log, numbers)) / len(numbers))


def ratio(rows: Rows, policy: str, other: str, what: str) -> Interval:
    """Of two policies' figures, paired by sample."""
    found = paired(values(rows, policy, what), values(rows, other, what))
    assert found is not None, "values are above 0"
    return found


def is_above(found: Interval, bar: float) -> bool:
    """Over the bar, and the interval does not say otherwise."""
    return found.ratio > bar and (found.low is None or found.low > bar)


def score(table: Table, policy: str) -> dict[str, Any]:
    """Ratios of one policy to the best of each cell; the goodput it lacks there."""
    told: dict[str, Any] = {"policy": policy}
    for what, (_, _, worst) in BARS.items():
        ratios: dict[str, float] = {}
        lost: list[str] = []
        for name, rows in table.items():
            best = min(rows, key=lambda each: middle(values(rows, each, what)))
            found = ratio(rows, policy, best, what)
            ratios[name] = found.ratio
            if is_above(found, worst):
                lost.append(name)
        told[what] = _told(ratios, lost)
    gaps: dict[str, float] = {}
    lost = []
    for name, rows in table.items():
        means = {p: sum(f.goodput for f in rows[p]) / len(rows[p]) for p in rows}
        best = max(means, key=lambda each: means[each])
        gaps[name] = means[best] - means[policy]
        if gaps[name] > MAX_GOODPUT_GAP and least_gap(rows, policy, best) > MAX_GOODPUT_GAP:
            lost.append(name)
    told["goodput_gap"] = {
        "mean": sum(gaps.values()) / len(gaps),
        "worst": max(gaps.values()),
        "worst_cell": max(gaps, key=lambda name: gaps[name]),
        "lost": lost,
    }
    return told


def least_gap(rows: Rows, policy: str, best: str) -> float:
    """Lower end of the paired 95 % interval of the goodput that a policy lacks."""
    # A ratio of exponentials is a difference.
    found = paired([exp(f.goodput) for f in rows[best]], [exp(f.goodput) for f in rows[policy]])
    assert found is not None, "exponentials are above 0"
    return log(found.ratio if found.low is None else found.low)


def median_to_round_robin(table: Table, policy: str) -> dict[str, Any]:
    """p50 TTFT over round robin's, by cell."""
    found = {name: ratio(rows, policy, "round-robin", "ttft_p50") for name, rows in table.items()}
    lost = [name for name, each in found.items() if is_above(each, MAX_P50_TO_ROUND_ROBIN)]
    return _told({name: each.ratio for name, each in found.items()}, lost)


def _told(ratios: dict[str, float], lost: list[str]) -> dict[str, Any]:
    return {
        "geometric_mean": middle(list(ratios.values())),
        "worst": max(ratios.values()),
        "worst_cell": max(ratios, key=lambda name: ratios[name]),
        "lost": lost,
    }


def against(table: Table, policy: str) -> float:
    """The default's mean TTFT over a policy's, geometric mean over the cells with reuse."""
    with_reuse = {cell.name for cell in cells() if cell.reuse}
    ratios = [
        middle(values(rows, "default", "ttft")) / middle(values(rows, policy, "ttft"))
        for name, rows in table.items()
        if name in with_reuse
    ]
    return middle(ratios) if ratios else float("nan")


def judge(table: Table, mine: dict[str, Any]) -> list[tuple[str, float, float, bool]]:
    """The default's bars: name, value, bar, met."""
    bars: list[tuple[str, float, float, bool]] = []
    for what, (_, most, worst) in BARS.items():
        found = mine[what]
        if most:
            value = found["geometric_mean"]
            bars.append((f"{what}_geometric_mean", value, most, value <= most))
        bars.append((f"{what}_worst", found["worst"], worst, not found["lost"]))
    gap = mine["goodput_gap"]
    bars.append(("goodput_gap_worst", gap["worst"], MAX_GOODPUT_GAP, not gap["lost"]))
    half = median_to_round_robin(table, "default")
    bars.append(
        ("ttft_p50_over_round_robin", half["worst"], MAX_P50_TO_ROUND_ROBIN, not half["lost"])
    )
    for policy, bar in AGAINST.items():
        value = against(table, policy)
        bars.append((f"ttft_over_{policy}", value, bar, value <= bar))
    return bars


def beside(table: Table) -> dict[str, float]:
    """Figures that are told and have no bar."""
    return {f"ttft_over_{policy}": against(table, policy) for policy in BESIDE}


def left_out(table: Table, variants: dict[str, str]) -> list[dict[str, Any]]:
    """What the default is without each of its terms, over what it is. variants: name, policy."""
    told: list[dict[str, Any]] = []
    for name, policy in variants.items():
        row: dict[str, Any] = {"without": name, "policy": policy}
        for what in ("ttft", "ttft_p99", "e2e"):
            ratios = {cell: ratio(rows, policy, "default", what) for cell, rows in table.items()}
            found = _told({cell: each.ratio for cell, each in ratios.items()}, [])
            row[what] = {key: found[key] for key in ("geometric_mean", "worst", "worst_cell")}
        told.append(row)
    return told


def wrong_rows(found: dict[str, Table], base: dict[str, str]) -> list[dict[str, Any]]:
    """The default under each wrong belief: over itself without, over the best of the others with.

    base: for each belief, the name of the one that is right.
    """
    told: list[dict[str, Any]] = []
    for name, table in found.items():
        right = found[base[name]]
        own: list[float] = []
        others: list[float] = []
        for cell, rows in table.items():
            mine = values(rows, "default", "ttft")
            own.append(middle(mine) / middle(values(right[cell], "default", "ttft")))
            best = min(middle(values(rows, each, "ttft")) for each in rows if each != "default")
            others.append(middle(mine) / best)
        told.append(
            {
                "wrong": name,
                "ttft_to_right": middle(own),
                "ttft_to_right_worst": max(own),
                "ttft_to_others": middle(others),
                "ttft_to_others_worst": max(others),
            }
        )
    return told


def left_out_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of left-out terms of docs/policies.md."""
    lines = [
        "| without | mean TTFT | p99 TTFT | mean E2E | worst for mean TTFT |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        told = [
            f"{row[w]['geometric_mean']:.3f} ({row[w]['worst']:.2f})"
            for w in ("ttft", "ttft_p99", "e2e")
        ]
        lines.append(
            f"| {row['without']} | " + " | ".join(told) + f" | {row['ttft']['worst_cell']} |"
        )
    return "\n".join([*lines, ""])


def wrong_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of wrong beliefs of docs/policies.md."""
    lines = [
        "| the router is wrong about | mean TTFT over that of the right belief | over the best of"
        " the others, equally wrong |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['wrong']} | {row['ttft_to_right']:.2f} ({row['ttft_to_right_worst']:.2f}) |"
            f" {row['ttft_to_others']:.2f} ({row['ttft_to_others_worst']:.2f}) |"
        )
    return "\n".join([*lines, ""])


def brief(table: Table) -> dict[str, Any]:
    """Every sample's figures, for the results file."""
    return {
        name: {
            policy: {
                what: [round(value, 5) for value in values(rows, policy, what)]
                for what in ("ttft", "ttft_p50", "ttft_p99", "e2e")
            }
            | {
                "goodput": [round(each.goodput, 4) for each in rows[policy]],
                "hit": [round(each.hit, 4) for each in rows[policy]],
            }
            for policy in rows
        }
        for name, rows in table.items()
    }


def markdown(scores: Sequence[dict[str, Any]], note: str) -> str:
    """The table of results of docs/policies.md."""
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
