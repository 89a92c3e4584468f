"""The cells of `bench_policies`: which workload, on which fleet, at which load, with which view.

The list is written down before anything is measured and holds for every policy. Loads are shares
of the fleet's knee, the rate at which it begins to queue; knees are measured by the rule of
`policy_knees.py` and kept in `policy_knees.json`. A rate is a factor on what the trace recorded (on
the generator's rate). KNOBS are the parameters that every policy may choose from: the first is what
its source publishes.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

LLAMA, QWEN = "llama-3.1-8b/h100", "qwen3-32b/2xh100"
MIXED = f"{QWEN},qwen3-32b/2xa100"
SAMPLES = 5
LOADS = (0.6, 1.0, 1.3)
KNEES = Path(__file__).with_name("policy_knees.json")


class Source(NamedTuple):
    """A workload. windows: samples are windows of the trace, else seeds. profile: of 8 and 16
    replicas; other: of 4. copies: of each session, for 8 replicas; more and less for others (0:
    the trace as it is): a trace of few sessions never loads a fleet.
    """

    file: str
    windows: bool
    profile: str
    other: str
    copies: int = 0


SOURCES: dict[str, Source] = {
    "conversation": Source("mooncake_conversation_0-40min.jsonl.gz", True, QWEN, LLAMA),
    "synthetic": Source("mooncake_synthetic.jsonl.gz", True, QWEN, LLAMA),
    "coding": Source("agentic_claude_code_sessions.jsonl.gz", True, LLAMA, QWEN),
    "tau-bench": Source("taubench_airline_gpt4o.jsonl.gz", False, LLAMA, QWEN, 14),
    "mini-swe": Source("agent_miniswe.jsonl.gz", False, LLAMA, QWEN, 40),
    "azure": Source("azure_llm_2023_conv.csv.gz", True, LLAMA, QWEN, 1),
    "shared-prefix": Source("shared-prefix:rounds=2", False, QWEN, LLAMA),
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


# Rows of a policy at what its source publishes, whatever its parameters are set to.
PUBLISHED = {"dynamo-published": "dynamo"}
ROWS = (*POLICIES, *PUBLISHED)


class Cell(NamedTuple):
    """One condition; all policies meet its samples. load: the rate over the fleet's knee. world:
    further options of the lab. copies: of each session.
    """

    name: str
    source: str
    profile: str
    replicas: int
    load: float
    rate: float
    view: str
    reuse: bool
    copies: int = 1
    world: tuple[tuple[str, Any], ...] = ()


class Fleet(NamedTuple):
    """What has a knee: a workload on some replicas. note: what the world is called."""

    source: str
    profile: str
    replicas: int
    view: str
    world: tuple[tuple[str, Any], ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """As a cell's name begins, and the key of KNEES."""
        told = "mixed" if "," in self.profile else self.profile
        tail = f", {self.note}" if self.note else ""
        return f"{self.source}, {self.replicas} x {told}, {self.view}{tail}"

    def cell(self, load: float, knee: float) -> Cell:
        """The cell at this share of a knee."""
        rate = float(f"{knee * load:.4g}")
        copies = max(1, round(SOURCES[self.source].copies * self.replicas / 8))
        name = f"{self.name}, {load:g} of the knee (rate {rate:g})"
        what = (self.source, self.profile, self.replicas, load, rate, self.view)
        return Cell(name, *what, self.source != "azure", copies, self.world)


def fleets() -> list[Fleet]:
    """Those that meet all LOADS: three for each workload."""
    found: list[Fleet] = []
    for name, source in SOURCES.items():
        found.append(Fleet(name, source.profile, 8, "approximate"))
        found.append(Fleet(name, source.other, 4, "exact"))
        found.append(Fleet(name, source.profile, 16, "exact"))
    return found


def special() -> list[Fleet]:
    """Those that are met at their knee only: mixed ones, and an offload tier."""
    tier = (("tier_tokens", 1_000_000),)
    told = (*tier, ("tier_told", True))  # events tell the exact view of the tier
    return [
        *(Fleet(name, MIXED, 8, "approximate") for name in ("conversation", "synthetic")),
        Fleet("coding", LLAMA, 8, "approximate", told, "offload tier"),
        Fleet("coding", LLAMA, 8, "exact", tier, "offload tier"),
    ]


@lru_cache(maxsize=1)
def knees() -> dict[str, float]:
    """Rates by the names of fleets, as measured."""
    return {name: each["knee"] for name, each in json.loads(KNEES.read_text())["fleets"].items()}


def _at(fleet: Fleet, load: float) -> Cell:
    return fleet.cell(load, knees()[fleet.name])


def cells() -> list[Cell]:
    """All of them."""
    return [_at(fleet, load) for fleet in fleets() for load in LOADS] + [
        _at(fleet, 1.0) for fleet in special()
    ]


def quick() -> list[Cell]:
    """Those of `QUICK=1`: each workload on its first fleet at its knee, approximate view."""
    return [_at(fleet, 1.0) for fleet in fleets() if fleet.replicas == 8]


def tuning() -> list[Cell]:
    """Those on which KNOBS are set: each workload on 4 replicas at its knee."""
    return [_at(fleet, 1.0) for fleet in fleets() if fleet.replicas == 4]


# The default without one of its terms (`ablation`).
WITHOUT: dict[str, str] = {
    "theta: price of backlog": "strength=0",
    "i: delay of those who run": "interference=0",
    "m: bound of that": "crowd=1e9",
    "U: bound for long prompts": "large=1e12",
    "h: their rise in overload": "overload=0",
    "x: slower decoding": "decode=0",
    "e: only where uneven": "slack=0",
    "y: answers that take longer": "tempo=0",
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
HALF_DECODING = (("decodes", (1.0, 0.5) * 4),)
WRONGS = (
    Wrong("nothing"),
    Wrong("cost of prefill x 0.5", "seconds_per_token=2e-5,decode=0.6"),
    Wrong("cost of prefill x 2", "seconds_per_token=8e-5,decode=0.15"),
    Wrong("half the fleet at half speed", "", HALF_SPEED),
    Wrong("the same, nothing learned", "learn=0", HALF_SPEED),
    Wrong("half the fleet decodes at half speed", "", HALF_DECODING),
    Wrong("the same, only prefill learned", "tempo=0", HALF_DECODING),
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
        cell = _at(Fleet(name, SOURCES[name].profile, 8, "approximate"), 0.6)
        found.append(cell._replace(view=wrong.view or cell.view, world=wrong.world))
    return found


def ablation() -> list[Cell]:
    """Those on which terms are left out: the quick ones, 4 replicas, and the mixed fleets."""
    return quick() + tuning() + [_at(each, 1.0) for each in special() if "," in each.profile]
