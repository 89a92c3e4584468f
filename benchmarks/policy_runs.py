"""Runs of the lab for `bench_policies`, kept on disk so that a stopped benchmark goes on.

A run is kept under the digest of its cell, its sample, its policy, the loaders of workloads, and
the policy's fingerprint: the outcome, to the last bit, of probes under this policy. So a change of
code voids the runs of those policies whose probes it changes, and no others: a new term of the
default leaves the runs of all others as they are. The probes are short (half a second a policy)
and hold what changes a decision: evictions, preemptions, a failure, a mixed fleet, both views, and
for the default overload. A change that shows in none of them keeps old runs; `--fresh` forgets all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks.policy_cells import LLAMA, MIXED, QWEN, SAMPLES, SOURCES, Cell
from warmlane._core.hashing import digest
from warmlane.router.config import PoolConfig
from warmlane.router.registry import POLICIES
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import LabOptions
from warmlane.router.sim.lab_world import Change
from warmlane.router.sim.replay import fleet_of, pool_for
from warmlane.router.sim.replay_report import Figures, Slo, figures
from warmlane.router.sim.replay_workloads import window, workload
from warmlane.router.sim.timing import Timing
from warmlane.router.sim.traces import Workload

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "policies"
MAX_PROMPT = 120_000
WARM_UP = 0.25  # of a trace's time, before each window
# What makes the workloads: a change voids all runs.
LOADERS = ("traces.py", "replay_workloads.py", "workload.py", "copies.py", "chance.py")
# What a fingerprint may depend on: while none of it changes, the probes are not run again.
CODE = (
    *("scorers/*.py", "router/*.py", "router/sim/*.py", "src_ext/*.p*", "src_ext/*.h"),
    "benchmarks/policy_runs.py",  # the probes
)


class Job(NamedTuple):
    """One sample of one cell, for policies that nobody has run yet: (policy, its fingerprint)."""

    cell: Cell
    sample: int
    policies: tuple[tuple[str, str], ...]
    traces: str


def pool_of(policy: str, fleet: Sequence[Timing]) -> PoolConfig:
    """The config of a policy, or of `name:field=value,...`: one scorer with other parameters."""
    name, _, given = policy.partition(":")
    pool = pool_for(name, fleet)
    if not given:
        return pool
    part, *others = pool.scorers or POLICIES[name].scorers  # the first one has the parameters
    fields: dict[str, Any] = {"name": part} if isinstance(part, str) else dict(part)
    for pair in given.split(","):
        field, _, value = pair.partition("=")
        fields[field] = float(value) if "." in value or "e" in value else int(value)
    return PoolConfig(scorers=[fields, *others])


def kept_at(cell: Cell, sample: int, policy: str, print_: str) -> Path:
    """Where the figures of a run are kept."""
    told = f"{cell}|{sample}|{policy}|{print_}|{loaders_digest()}|{MAX_PROMPT}|{WARM_UP}"
    return CACHE / f"{digest(told.encode()):016x}.json"


def kept(path: Path) -> Figures | None:
    """The figures that a finished run left, None without."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Figures)
    except (OSError, msgspec.DecodeError):  # never run, or written by another version
        return None


@lru_cache(maxsize=1)
def loaders_digest() -> str:
    """The state of what makes the workloads."""
    return _digest_of(ROOT / "router" / "sim" / name for name in LOADERS)


def code_digest() -> str:
    """The state of everything in CODE."""
    return _digest_of(sorted(path for glob in CODE for path in ROOT.glob(glob)))


def _digest_of(paths: Iterable[Path]) -> str:
    return f"{digest(b''.join(path.read_bytes() for path in paths)):016x}"


@lru_cache(maxsize=4)
def _whole(name: str, seed: int, copies: int) -> Workload:
    return workload(name, seed=seed, copies=copies)


def sample_of(cell: Cell, sample: int, traces: str) -> tuple[Workload, float]:
    """The workload, and from when on (seconds of the lab) its requests are judged.

    A window comes with the WARM_UP before it: a fleet with empty caches says little of reuse. The
    judged parts of two windows never overlap.
    """
    source = SOURCES[cell.source]
    name = source.file if ":" in source.file else str(Path(traces) / source.file)
    if not source.windows:
        return _whole(name, sample + 1, cell.copies), 0.0
    whole = _whole(name, 1, cell.copies)
    begin = WARM_UP + sample * (1.0 - WARM_UP) / SAMPLES
    made = window(whole, begin - WARM_UP, begin + (1.0 - WARM_UP) / SAMPLES)
    starts = [session.start_s for session in whole.sessions]
    at_s = min(starts) + begin * (max(starts) - min(starts))
    return made, (at_s - min(each.start_s for each in made.sessions)) / cell.rate


def options_of(cell: Cell, sample: int) -> LabOptions:
    """The fleet of a cell."""
    return LabOptions(
        fleet=fleet_of(cell.profile, cell.replicas),
        rate=cell.rate,
        view=cell.view,
        max_prompt=MAX_PROMPT,
        seed=sample + 1,
        **dict(cell.world),
    )


def work(job: Job) -> int:
    """Run and keep; how many runs. RuntimeError: a policy's own advice failed."""
    made, since_s = sample_of(job.cell, job.sample, job.traces)
    options = options_of(job.cell, job.sample)
    for policy, print_ in job.policies:
        logging.getLogger("warmlane.watchdog").setLevel(logging.ERROR)  # of modelled replicas
        run = Lab(made, pool_of(policy, options.fleet), options).run()
        found = figures(run, Slo(), since_s)
        if found.fallbacks:
            raise RuntimeError(f"{policy}: its advice failed {found.fallbacks} times: {job.cell}")
        path = kept_at(job.cell, job.sample, policy, print_)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(msgspec.json.encode(found))
        part.replace(path)
    return len(job.policies)


def _probes() -> list[tuple[Workload, LabOptions]]:
    """Small worlds under load; see the head of the module."""
    agent, chat = workload("agent", seed=5, sessions=100), workload("chat", seed=6, sessions=500)
    shared = workload("shared-prefix:groups=30,prompts=30,system=2000,output=200", seed=7)
    few, mixed = fleet_of(LLAMA, 4), fleet_of(MIXED, 4)
    fail = (Change(at_s=20.0, slot=1, what="fail"), Change(at_s=30.0, slot=2, what="slow"))
    return [
        (agent, LabOptions(fleet=few, rate=20.0, kv_tokens=100_000, think_cap_s=5.0, seed=2)),
        (chat, LabOptions(fleet=mixed, rate=15.0, view="exact", changes=fail, think_cap_s=10.0)),
        (shared, LabOptions(fleet=few[:3], rate=4.0, kv_tokens=40_000, kv_scale=2.0)),
    ]


def _overload() -> tuple[Workload, LabOptions]:
    """For the default alone: no policy of others has a mode of its own there."""
    agent = workload("agent", seed=8, sessions=150)
    return agent, LabOptions(fleet=fleet_of(QWEN, 2), rate=100.0, think_cap_s=0.1, seed=3)


def fingerprint(policy: str) -> tuple[str, str]:
    """(policy, digest of what its probes brought)."""
    logging.getLogger("warmlane.watchdog").setLevel(logging.ERROR)
    told: list[object] = []
    ours = [_overload()] if policy.partition(":")[0] == "default" else []
    for made, options in _probes() + ours:
        run = Lab(made, pool_of(policy, options.fleet), options).run()
        found = figures(run, Slo(), 5.0)
        summary = (found.ttft, found.tpot, found.e2e, found.goodput, found.hit_tokens)
        told.append((run.done, run.failed, run.busy_s, summary))
    return policy, f"{digest(msgspec.json.encode(told)):016x}"
