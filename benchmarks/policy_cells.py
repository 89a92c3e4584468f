"""The cells of `bench_policies`: which workload, on which fleet, at which load, with which view.

The list is written down before anything is measured and holds for every policy. Rates are factors
on what the trace recorded (on the generator's rate), for 8 replicas; they scale with the fleet.
`knee` is set by hand, near the load where replicas begin to queue. KNOBS are the parameters that
every policy may choose from: the first is what its source publishes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

LLAMA, QWEN = "llama-3.1-8b/h100", "qwen3-32b/2xh100"
MIXED = f"{QWEN},qwen3-32b/2xa100"
SAMPLES = 5
LOADS = (0.6, 1.0, 1.3)


class Source(NamedTuple):
    """A workload. windows: samples are windows of the trace, else seeds. knee: see above."""

    file: str
    windows: bool
    profile: str
    knee: float
    other: str
    other_knee: float


SOURCES: dict[str, Source] = {
    "conversation": Source("mooncake_conversation_0-40min.jsonl.gz", True, QWEN, 1.0, LLAMA, 2.2),
    "synthetic": Source("mooncake_synthetic.jsonl.gz", True, QWEN, 1.0, LLAMA, 2.4),
    "coding": Source("agentic_claude_code_sessions.jsonl.gz", True, LLAMA, 0.8, QWEN, 0.35),
    "tau-bench": Source("taubench_airline_gpt4o.jsonl.gz", False, LLAMA, 30.0, QWEN, 10.0),
    "mini-swe": Source("agent_miniswe.jsonl.gz", False, LLAMA, 20.0, QWEN, 8.0),
    "azure": Source("azure_llm_2023_conv.csv.gz", True, LLAMA, 12.0, QWEN, 6.0),
    "shared-prefix": Source("shared-prefix:rounds=2", False, QWEN, 1.2, LLAMA, 2.4),
}

# Rows of the table, and for those with parameters what they may be set to.
POLICIES = (
    *("default", "round-robin", "least-requests", "llmd-weighted", "llmd-affinity", "dynamo"),
    *(
        "llmd-weighted-live",
        "lmetric",
        "lmetric-queued",
        "sglang",
        "random",
        "power-of-two",
        "bounded-hash",
        "aibrix",
    ),
    *("least-ttft", "preble", "dualmap"),
)
KNOBS: dict[str, tuple[str, ...]] = {
    "default": ("", "interference=0.1", "strength=1", "strength=4", "crowd=20"),
    "llmd-weighted": ("", "prefix=2", "prefix=6", "kv=1", "queue=4"),
    "llmd-affinity": ("", "tau_tokens=20000", "tau_tokens=60000", "share=0.5"),
    "dynamo": ("", "overlap_weight=2", "overlap_weight=4", "overlap_weight=0.5"),
    "sglang": ("", "threshold=0.5", "balance_abs=16", "balance_abs=4,balance_rel=1.1"),
    "bounded-hash": ("", "factor=1.5", "factor=2", "head_bytes=1024"),
    "aibrix": ("", "imbalance=16", "sigmas=2", "imbalance=32,sigmas=2"),
    "least-ttft": ("", "pair_share=2e-5", "pair_share=8e-5"),
    "preble": ("", "decode_share=0.03", "decode_share=0.3"),
    "dualmap": ("", "slo_s=1", "slo_s=5", "head_bytes=1024"),
}


class Cell(NamedTuple):
    """One condition; all policies meet its samples. world: further options of the lab."""

    name: str
    source: str
    profile: str
    replicas: int
    rate: float
    view: str
    reuse: bool
    world: tuple[tuple[str, Any], ...] = ()


def cells() -> list[Cell]:
    """All of them: three loads on three fleets for each workload, and one on a mixed fleet."""
    found: list[Cell] = []
    for name, source in SOURCES.items():
        fleets = (
            (source.profile, 8, source.knee, "approximate"),
            (source.other, 4, source.other_knee, "exact"),
            (source.profile, 16, source.knee, "exact"),
        )
        for profile, replicas, knee, view in fleets:
            for load in LOADS:
                found.append(_cell(name, profile, replicas, knee * load, view))
    found.append(_cell("conversation", MIXED, 8, 0.7, "approximate"))
    found.append(_cell("synthetic", MIXED, 8, 0.7, "approximate"))
    tier = (("tier_tokens", 1_000_000),)
    for view in ("approximate", "exact"):
        cell = _cell("coding", LLAMA, 8, 0.8, view)
        told = (("tier_told", True),) if view == "approximate" else ()  # events tell the other
        found.append(cell._replace(name=f"{cell.name}, offload tier", world=tier + told))
    return found


def quick() -> list[Cell]:
    """Those of `QUICK=1`: each workload on its first fleet at its knee, approximate view."""
    return [cell for cell in cells() if cell.replicas == 8 and not cell.world and _at_knee(cell)]


def tuning() -> list[Cell]:
    """Those on which KNOBS are set: each workload on 4 replicas at its knee."""
    return [
        cell
        for cell in cells()
        if cell.replicas == 4 and cell.rate == SOURCES[cell.source].other_knee / 2
    ]


# The default without one of its terms (`ablation`).
WITHOUT: dict[str, str] = {
    "theta: price of backlog": "strength=0",
    "i: delay of those who run": "interference=0",
    "m: bound of that": "crowd=1e9",
    "x: slower decoding": "decode=0",
    "g: copies": "copy=0",
    "b: wait for room": "scarcity=0",
    "w: even filling": "spread=0",
    "q: attention": "pair=0",
    "F: learned pace": "learn=0",
}


class Wrong(NamedTuple):
    """Something the router is wrong about. fields: of policy `default`; view "": the cell's."""

    name: str
    fields: str = ""
    world: tuple[tuple[str, Any], ...] = ()
    view: str = ""


HALF_SPEED = (("speeds", (1.0, 0.5) * 4),)
WRONGS = (
    Wrong("nothing"),
    Wrong("cost of prefill x 0.5", "seconds_per_token=2e-5,decode=0.6"),
    Wrong("cost of prefill x 2", "seconds_per_token=8e-5,decode=0.15"),
    Wrong("half the fleet at half speed", "", HALF_SPEED),
    Wrong("the same, nothing learned", "learn=0", HALF_SPEED),
    Wrong("caches x 0.5", "", (("kv_scale", 0.5),)),
    Wrong("caches x 2", "", (("kv_scale", 2.0),)),
    Wrong("scrapes 9 s old", "", (("scrape_s", 9.0),)),
    Wrong("nothing, exact view", "", (), "exact"),
    Wrong("events 1 s late, exact view", "", (("view_lag_s", 1.0),), "exact"),
)
WRONG_AGAINST = ("llmd-weighted", "llmd-affinity")
WRONG_SOURCES = ("conversation", "synthetic", "coding", "shared-prefix")


def wrong_cells(wrong: Wrong) -> list[Cell]:
    """Workloads with reuse at 0.6 of their knee, where half a fleet can carry them."""
    found = []
    for name in WRONG_SOURCES:
        source = SOURCES[name]
        view = wrong.view or "approximate"
        cell = _cell(name, source.profile, 8, source.knee * 0.6, view)
        found.append(cell._replace(world=wrong.world))
    return found


def ablation() -> list[Cell]:
    """Those on which terms are left out: the quick ones, 4 replicas, and the mixed fleets."""
    return quick() + tuning() + [cell for cell in cells() if "," in cell.profile]


def _at_knee(cell: Cell) -> bool:
    return cell.rate == SOURCES[cell.source].knee


def _cell(name: str, profile: str, replicas: int, rate: float, view: str) -> Cell:
    rate = round(rate * replicas / 8, 4)
    told = "mixed" if "," in profile else profile
    label = f"{name}, {replicas} x {told}, rate {rate:g}, {view}"
    return Cell(label, name, profile, replicas, rate, view, name != "azure")
