"""Does admission help past saturation, and cost nothing below it? In the lab, not on GPUs.

    PYTHONPATH=. python -m benchmarks.bench_admission [--quick] [--save]

Each workload runs below, at and past the load where replicas begin to queue, with admission and
without, on the same samples: four kinds of traffic, 8 or 2 replicas, sessions told apart by prompts
alone. A client that is refused asks again when it was told to, for as long as it takes, and its
time to the first token counts from the first time it asked. Good is, below saturation: mean TTFT
and goodput as without (1 %); past it: more goodput, and nobody starves. Goodput: share of all
requests with TTFT <= 2 s and TPOT <= 50 ms; the first request of a session that had to wait is one
of them and misses it. Told beside: p99 TTFT of requests that go on with a session, and the mean
time that a session takes from the first time it asked, its wait included. One more load past
saturation: coding agents that begin at 0.08 a second (docs/admission.md).

The settings were chosen on seeds 11 and 12, and on the last fifth of the traces that have times;
scored are seeds 1 and 2, and their first four fifths. Traces are looked for as docs/workloads.md
says; workloads without their trace are left out and named.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.bars import Bench
from warmlane.router.config_admission import Admission
from warmlane.router.sim.chance import Chance
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.replay import fleet_of, pool_for
from warmlane.router.sim.replay_report import Figures, Slo, figures
from warmlane.router.sim.replay_workloads import window, workload
from warmlane.router.sim.traces import Workload, find_traces

LLAMA, QWEN = "llama-3.1-8b/h100", "qwen3-32b/2xh100"
MAX_PROMPT = 120_000
FOR_EVER_S = 1e9
LOADS = ("below", "at", "past")
SAME = 1.01  # below saturation
SAMPLES = 2
# The longest wait past saturation, in runs: each request went, so the last one did before the end.
EVERYBODY = 0


class Source(NamedTuple):
    """A workload. rates: factors on its own arrivals below, at and past saturation. part: of a
    trace that is played; seeds differ in what the trace leaves open."""

    file: str
    profile: str
    rates: tuple[float, float, float]
    part: float
    replicas: int = 8


SOURCES = {
    "coding agents": Source("agentic_claude_code_sessions.jsonl.gz", LLAMA, (0.5, 1.0, 2.5), 0.4),
    "coding, built-in": Source("coding", LLAMA, (0.01, 0.03, 4.0), 1.0, 2),
    "conversation": Source("mooncake_conversation_0-40min.jsonl.gz", QWEN, (0.6, 1.2, 2.0), 0.4),
    "synthetic": Source("mooncake_synthetic.jsonl.gz", QWEN, (0.6, 1.2, 2.5), 0.4),
}


def sample(source: Source, traces: Path | None, seed: int) -> Workload | None:
    """The workload of a seed; None where its trace is not here."""
    if not source.file.endswith(".gz"):
        made = workload(source.file, seed=seed, sessions=40)
        sessions = tuple(each for each in made.sessions if each.turns)
        return msgspec.structs.replace(made, sessions=sessions)
    path = traces / source.file if traces is not None else None
    if path is None or not path.exists():
        return None
    low = (seed - 1) * source.part
    return window(workload(str(path), seed=seed), low, low + source.part)


AGENTS = "coding agents"
BEGIN_PER_S, SESSIONS = 0.08, 260


def poisson(traces: Path, seed: int) -> Workload:
    """Coding agents in random order that begin as a Poisson process."""
    made, chance = workload(str(traces / SOURCES[AGENTS].file), seed=seed), Chance(seed)
    order = list(made.sessions)
    chance.shuffle(order)
    at_s, sessions = 0.0, []
    for session in order[:SESSIONS]:
        sessions.append(msgspec.structs.replace(session, start_s=at_s))
        at_s += chance.exponential(1.0 / BEGIN_PER_S)
    return msgspec.structs.replace(made, sessions=tuple(sessions))


class Watched(Lab):
    """Keeps what figures of single requests do not tell."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.later: list[float] = []  # TTFT of requests that go on with a session
        self.spans: dict[str, tuple[float, float]] = {}

    def _finish(self, live: Any, cached: int, now: float) -> None:
        super()._finish(live, cached, now)
        begun, _ = self.spans.get(live.session.name, (live.arrived, 0.0))
        self.spans[live.session.name] = begun, now
        if live.index:
            self.later.append(live.first - live.arrived)


class Played(NamedTuple):
    """One run. later_p99_s: TTFT of requests that go on. session_s: mean, waits included."""

    figures: Figures
    later_p99_s: float
    session_s: float


def played(made: Workload, source: Source, rate: float, admission: Admission) -> Played:
    """One run."""
    options = LabOptions(
        fleet=fleet_of(source.profile, source.replicas),
        rate=rate,
        max_prompt=MAX_PROMPT,
        admission=admission,
        patience_s=FOR_EVER_S,
        named=False,
    )
    lab = Watched(made, pool_for("default", options.fleet), options)
    found = figures(lab.run(), Slo())
    later = sorted(lab.later) or [0.0]
    session_s = mean([end - begun for begun, end in lab.spans.values()])
    return Played(found, later[len(later) * 99 // 100], session_s)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> int:
    bench = Bench("admission", "does it help past saturation and cost nothing below it?")
    logging.getLogger("warmlane").setLevel(logging.ERROR)  # of modelled replicas
    traces = find_traces(os.environ, Path(__file__))
    samples = 1 if bench.args.quick else SAMPLES
    for name, source in SOURCES.items():
        made = [sample(source, traces, seed) for seed in range(1, samples + 1)]
        if None in made:
            print(f"# left out, its trace is not here: {name}")
            continue
        for load, rate in zip(LOADS, source.rates, strict=True):
            both(bench, f"{name}, {load}", load, [each for each in made if each], source, rate)
    if traces is not None and (traces / SOURCES[AGENTS].file).exists():
        many = [poisson(traces, seed) for seed in range(1, samples + 1)]
        name = f"{AGENTS}, {BEGIN_PER_S:g}/s, past"
        both(bench, name, "past", many, SOURCES[AGENTS], 1.0)
    return bench.finish()


def both(
    bench: Bench, name: str, load: str, made: list[Workload], source: Source, rate: float
) -> None:
    """With admission and without."""
    without = [played(each, source, rate, Admission()) for each in made]
    within = [played(each, source, rate, Admission(enabled=True)) for each in made]
    compare(bench, name, load, without, within)


def compare(
    bench: Bench, name: str, load: str, without: list[Played], within: list[Played]
) -> None:
    """The bars of one workload at one load."""
    for label, runs in (("without", without), ("with", within)):
        found = [each.figures for each in runs]
        print(
            f"# {name}, {label}: TTFT mean {mean([each.ttft.mean for each in found]):.2f}"
            f" p50 {mean([each.ttft.p50 for each in found]):.2f}"
            f" p99 {mean([each.ttft.p99 for each in found]):.1f}"
            f" p99 going on {mean([each.later_p99_s for each in runs]):.1f}"
            f" TPOT {1000 * mean([each.tpot.mean for each in found]):.1f} ms"
            f" E2E {mean([each.e2e.mean for each in found]):.1f}"
            f" session {mean([each.session_s for each in runs]):.0f}"
            f" hit {mean([each.hit for each in found]):.3f}"
            f" goodput {mean([each.goodput for each in found]):.3f}",
            flush=True,
        )
    one, other = [each.figures for each in without], [each.figures for each in within]
    ttft = mean([b.ttft.mean / a.ttft.mean for a, b in zip(one, other, strict=True)])
    better = mean([each.goodput for each in other]) - mean([each.goodput for each in one])
    if load == "below":
        bench.bar(f"{name}: mean TTFT over none", ttft, "x", SAME, scaled=False)
        bench.bar(f"{name}: goodput lost", max(0.0, -better), "", SAME - 1, scaled=False)
    elif load == "at":
        bench.tell(f"{name}: mean TTFT over none", ttft, "x")
        bench.tell(f"{name}: goodput gained", better, "")
    else:
        bench.tell(f"{name}: mean TTFT over none", ttft, "x")
        ratios = [b.session_s / a.session_s for a, b in zip(without, within, strict=True)]
        bench.tell(f"{name}: session time over none", mean(ratios), "x")
        bench.tell(f"{name}: goodput", mean([each.goodput for each in other]), "")
        bench.bar(f"{name}: goodput gained", better, "", 0.001, "more", scaled=False)
        failed = sum(each.failed for each in other)
        bench.bar(f"{name}: never served", failed, "requests", EVERYBODY, scaled=False)


if __name__ == "__main__":
    sys.exit(main())
