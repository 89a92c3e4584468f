"""The cells of `bench_policies`: which workload, on which fleet, at which load, with which view.

The list is written down before anything is measured and holds for every policy. Rates are factors
on what the trace recorded (on the generator's rate), for 8 replicas; they scale with the fleet.
`knee` is set by hand, near the load where replicas begin to queue.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Cell(NamedTuple):
    """One condition; all policies meet its samples."""

    name: str
    source: str
    profile: str
    replicas: int
    rate: float
    view: str
    reuse: bool


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
    return found


def quick() -> list[Cell]:
    """Those of `QUICK=1`: each workload on its first fleet at its knee, approximate view."""
    return [cell for cell in cells() if cell.replicas == 8 and _at_knee(cell)]


def _at_knee(cell: Cell) -> bool:
    return cell.rate == SOURCES[cell.source].knee


def _cell(name: str, profile: str, replicas: int, rate: float, view: str) -> Cell:
    rate = round(rate * replicas / 8, 4)
    told = "mixed" if "," in profile else profile
    label = f"{name}, {replicas} x {told}, rate {rate:g}, {view}"
    return Cell(label, name, profile, replicas, rate, view, name != "azure")
