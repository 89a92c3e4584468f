"""`warmlane replay --adapters N`: LoRA adapters over replicas that do not have room for all.

The runs are those of `sim.lab_adapters`, which makes its own requests (Zipf popularity, Poisson
arrivals, a system prompt for each adapter): there is no trace. Every policy meets the same samples.
docs/adapters.md says what is compared. Bad input raises TraceError.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from warmlane.router.config import PoolConfig
from warmlane.router.registry import build_parts
from warmlane.router.sim.lab_adapters import RIVALS, AdapterLab, AdapterWorkload
from warmlane.router.sim.lab_world import Watcher
from warmlane.router.sim.replay_report import Interval, between, paired
from warmlane.router.sim.statistics import Spread, spread
from warmlane.router.sim.timing import Timing
from warmlane.router.sim.traces import TraceError

REPLICAS: Final = 8
POLICIES: Final = "default,llmd-lora,llmd-mix,rendezvous,random"
MAX_ADAPTERS: Final = 100_000
# What applies beside our own options; any other that is given is refused.
_SHARED: Final = (
    *("replicas", "profile", "kv_tokens", "rate_scale", "seeds", "seed", "policy", "json"),
    *("quiet", "lora_slots"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a run with adapters."""
    group = parser.add_argument_group("adapters (requests for LoRA adapters in place of a trace)")
    add = group.add_argument
    add("--adapters", type=int, default=0, metavar="N", help="how many are asked for")
    add("--lora-slots", type=int, default=4, metavar="M", help="adapters in a replica at once")
    add("--adapter-load", type=float, default=0.3, metavar="S", help="time of a load")
    add("--adapter-skew", type=float, default=1.0, help="popularity 1 / rank ** skew")
    add(
        "--adapter-drift",
        type=float,
        default=0.0,
        metavar="S",
        help="dealt anew so often, 0: never",
    )
    add("--adapter-seconds", type=float, default=600.0, metavar="S", help="of arrivals")


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One policy over all samples: means; ttft_ratio: against the first policy, paired.

    hit: share of requests that caused no load. met: share whose adapter was there when they came.
    """

    policy: str
    requests: int
    hit: float
    met: float
    loads: int
    unloads: int
    ttft: Spread
    ttft_ratio: Interval | None


def workload_of(args: argparse.Namespace, fleet: Sequence[Timing]) -> AdapterWorkload:
    """What the options ask for; fleet: of one profile. TraceError names the one that is wrong."""
    if not 1 <= args.adapters <= MAX_ADAPTERS:
        raise TraceError(f"--adapters {args.adapters}: must be 1 to {MAX_ADAPTERS}")
    if not 1 <= args.lora_slots <= 1024:
        raise TraceError(f"--lora-slots {args.lora_slots}: must be 1 to 1024")
    if any(each != fleet[0] for each in fleet):
        raise TraceError(f"--profile {args.profile}: one for all replicas, with --adapters")
    within = {
        "--adapter-load": (args.adapter_load, 0.0, 3600.0),
        "--adapter-skew": (args.adapter_skew, 0.0, 10.0),
        "--adapter-drift": (args.adapter_drift, 0.0, 1e6),
        "--adapter-seconds": (args.adapter_seconds, 1.0, 86_400.0),
    }
    for name, (value, low, high) in within.items():
        if not low <= value <= high:
            raise TraceError(f"{name} {value:g}: must be {low:g} to {high:g}")
    tokens = args.kv_tokens or fleet[0].kv_tokens
    return AdapterWorkload(
        adapters=args.adapters,
        skew=args.adapter_skew,
        rate=AdapterWorkload().rate * args.rate_scale,
        seconds=args.adapter_seconds,
        drift_s=args.adapter_drift,
        replicas=len(fleet),
        slots=args.lora_slots,
        load_s=args.adapter_load,
        timing=msgspec.structs.replace(fleet[0], kv_tokens=tokens),
    )


def refuse_others(args: argparse.Namespace, defaults: argparse.Namespace) -> None:
    """TraceError: an option that a run with adapters knows nothing of. defaults: without any."""
    for name, value in vars(defaults).items():
        known = name in _SHARED or name.startswith("adapter")
        if not known and getattr(args, name) != value:
            what = "a trace" if name == "trace" else f"--{name.replace('_', '-')}"
            raise TraceError(f"--adapters makes its own requests: {what} does not go with it")


def policies_of(text: str) -> list[str]:
    """Names of RIVALS or of policies, each once. TraceError, ConfigError."""
    names = list(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    if not names:
        raise TraceError("--policy: names no policy; --policy list names them")
    for name in names:
        parts = None if name in RIVALS else build_parts(PoolConfig(policy=name), "-")
        if parts is not None and any(isinstance(each.scorer, Watcher) for each in parts.scorers):
            raise TraceError(
                f"--policy {name}: wants to see blocks in use, with --adapters none are"
            )
    return names


def compare(
    load: AdapterWorkload,
    policies: Sequence[str],
    seeds: Sequence[int],
    progress: Callable[[str, float], None],
) -> list[Told]:
    """Each policy over each seed."""
    times: dict[str, list[Spread]] = {policy: [] for policy in policies}
    counts = {policy: [0, 0, 0, 0] for policy in policies}
    total = len(policies) * len(seeds)
    for at, (seed, policy) in enumerate((s, p) for s in seeds for p in policies):
        progress(f"{policy}, seed {seed}", at / total)
        run = AdapterLab(policy, msgspec.structs.replace(load, seed=seed)).run()
        times[policy].append(spread(run.ttft_s))
        sums = counts[policy]
        for number, count in enumerate((run.requests, run.met, run.loads, run.unloads)):
            sums[number] += count
    return [_told(policy, counts[policy], times) for policy in policies]


def _told(policy: str, counts: Sequence[int], times: Mapping[str, list[Spread]]) -> Told:
    requests, met, loads, unloads = counts
    mine, first = times[policy], next(iter(times.values()))
    columns = zip(*(msgspec.structs.astuple(each) for each in mine), strict=True)
    return Told(
        policy=policy,
        requests=requests,
        hit=1.0 - loads / (requests or 1),
        met=met / (requests or 1),
        loads=loads,
        unloads=unloads,
        ttft=Spread(*(sum(column) / len(mine) for column in columns)),
        ttft_ratio=paired([each.mean for each in mine], [each.mean for each in first]),
    )


def notes(args: argparse.Namespace, load: AdapterWorkload, requests: int) -> list[str]:
    """What the table is of."""
    return [
        f"{requests:,} requests for {load.adapters} adapters in {args.seeds} sample(s),"
        f" {load.rate:.1f} a second, popularity 1 / rank ** {load.skew:g}",
        f"{load.replicas} x {args.profile} with {load.slots} slots, loads of {load.load_s:g} s;"
        " hit: caused no load, met: its adapter was there",
    ]


def rows(found: Sequence[Told]) -> list[list[str]]:
    """The table, its head first, as text."""
    head = ["policy", "hit", "met", "loads", "unloads", "TTFT mean", "p50", "p90", "p99"]
    table = [[*head, f"TTFT / {found[0].policy}"]]
    for each in found:
        ttft = each.ttft
        line = [each.policy, f"{each.hit:.1%}", f"{each.met:.1%}", str(each.loads)]
        line += [str(each.unloads)]
        line += [f"{value:.3f}" for value in (ttft.mean, ttft.p50, ttft.p90, ttft.p99)]
        table.append([*line, between(each.ttft_ratio)])
    return table
