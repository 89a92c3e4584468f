"""`warmlane replay`: a workload under several policies in the lab, told as table, JSON and HTML.

Every policy meets the same samples (seeds and windows of the workload) on fresh replicas. The runs
are those of `sim.lab`: the real decision core, compiled replicas, a virtual clock. docs/replay.md
explains the options and how to read the report. Bad input ends with status 2 and one line.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from warmlane import __version__
from warmlane.router.config import PoolConfig
from warmlane.router.config_admission import Admission
from warmlane.router.errors import RouterError
from warmlane.router.registry import POLICIES, build_parts
from warmlane.router.sim import replay_adapters as adapters
from warmlane.router.sim.lab import Lab
from warmlane.router.sim.lab_run import FRONT_S, LabOptions
from warmlane.router.sim.lab_world import CHANGES, Change
from warmlane.router.sim.record_trace import Recorded
from warmlane.router.sim.replay_backtest import backtest, fleet_size, record_at
from warmlane.router.sim.replay_html import page
from warmlane.router.sim.replay_report import (
    Figures,
    Slo,
    Summary,
    aligned,
    figures,
    summarise,
    text_table,
)
from warmlane.router.sim.replay_workloads import BUILT_IN, window, workload
from warmlane.router.sim.timing import DEFAULT_PRESET, PRESETS, Timing
from warmlane.router.sim.traces import LOADERS, TraceError, Workload

DEFAULT_POLICIES = "default,least-requests,round-robin"
# llm-d's tau is peak prefill rate x 14 to 18 s (docs/replay.md).
AFFINITY_S = 16.0
PEAK_TOKENS = 8192
MAX_REPLICAS = 1024
MAX_ROUTERS = 64
SHARE_S = 0.05  # the default of share.interval_s


class Sample(msgspec.Struct, frozen=True):
    """One workload that all policies meet. label: what the progress bar and the report call it."""

    label: str
    seed: int
    workload: Workload


def fleet_of(profiles: str, replicas: int) -> tuple[Timing, ...]:
    """Timings of the replicas: the profiles (comma-separated) in turn. TraceError."""
    if not 1 <= replicas <= MAX_REPLICAS:
        raise TraceError(f"--replicas {replicas}: must be 1 to {MAX_REPLICAS}")
    names = [name.strip() for name in profiles.split(",")]
    for name in names:
        if name not in PRESETS:
            raise TraceError(f"--profile {name}: unknown; --profile list names them")
    return tuple(PRESETS[name] for name in islice(cycle(names), replicas))


def pool_for(policy: str, fleet: Sequence[Timing]) -> PoolConfig:
    """The config of a policy; what its source derives from the hardware is derived here."""
    if policy == "llmd-affinity":
        timing = fleet[0]
        tau = AFFINITY_S * PEAK_TOKENS / timing.prefill_s(PEAK_TOKENS)
        (part,) = POLICIES[policy].scorers
        return PoolConfig(scorers=[{"name": str(part), "tau_tokens": tau}])
    return PoolConfig(policy=policy)


def samples_of(
    name: str, *, kind: str, seeds: Sequence[int], windows: int, sessions: int, copies: int
) -> Iterator[Sample]:
    """Seeds x windows, made when asked for. TraceError when a window is empty."""
    for seed in seeds:
        whole = workload(name, kind=kind, seed=seed, sessions=sessions, copies=copies)
        for number in range(windows):
            part = window(whole, number / windows, (number + 1) / windows)
            if not part.sessions:
                raise TraceError(f"{name}: nothing starts in window {number + 1} of {windows}")
            label = f"seed {seed}" + (f", window {number + 1}" if windows > 1 else "")
            yield Sample(label, seed, part)


def compare(
    samples: Sequence[Sample],
    policies: Sequence[str],
    options: LabOptions,
    slo: Slo,
    progress: Callable[[str, float], None] | None = None,
) -> list[Summary]:
    """Each policy over each sample. progress: told (what runs, share of the whole done)."""
    found: dict[str, list[Figures]] = {policy: [] for policy in policies}
    total, at = len(samples) * len(policies), 0
    for sample in samples:
        for policy in policies:
            label, begun = f"{policy}, {sample.label}", at / total

            def tell(share: float, label: str = label, begun: float = begun) -> None:
                if progress is not None:
                    progress(label, begun + share / total)

            tell(0.0)
            own = msgspec.structs.replace(options, seed=sample.seed)
            run = Lab(sample.workload, pool_for(policy, options.fleet), own, tell).run()
            found[policy].append(figures(run, slo))
            at += 1
    return summarise(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane replay`."""
    add = parser.add_argument
    add("trace", nargs="?", help=f"trace file (plain or gzip), or {', '.join(BUILT_IN)}")
    add("--format", default="auto", choices=["auto", *LOADERS], help="of the trace file")
    add("--policy", default="", metavar="A,B,C", help=f"`list` names them ({DEFAULT_POLICIES})")
    add("--backtest", action="store_true", help="of a record: predict it, and tell the error")
    add("--ran", default="", metavar="POLICY", help="what ran, where a record does not tell")
    add("--replicas", type=int, help="how many (4; of a record: as it says)")
    add("--profile", default=DEFAULT_PRESET, help="model and GPU (several: in turn); `list`")
    add("--kv-tokens", type=int, default=0, help="KV cache of one replica, 0: the profile's")
    add("--rate-scale", type=float, default=1.0, metavar="X", help="arrivals X times faster")
    add("--seeds", type=int, default=1, metavar="K", help="samples by seed, from --seed on")
    add("--seed", type=int, default=1, help="the first seed")
    add("--windows", type=int, default=1, metavar="W", help="cut the trace into W samples")
    add("--sessions", type=int, default=0, help="first sessions only (built-in: how many, 200)")
    add("--copies", type=int, default=1, metavar="N", help="each session N times, N x as long")
    add("--think-cap", type=float, default=120.0, metavar="S", help="longest think time")
    add("--max-prompt", type=int, default=131_072, metavar="TOKENS")
    add("--view", default="approximate", choices=["exact", "approximate", "none"])
    add(
        "--front-ms",
        type=float,
        default=1000 * FRONT_S,
        metavar="MS",
        help="router to queue (15.6)",
    )
    add("--routers", type=int, default=1, metavar="M", help="before one fleet, taken by chance")
    add("--admission", default="off", choices=["on", "off"], help="past saturation (off)")
    add("--share", default="on", choices=["on", "off"], help="do they hear each other (on)")
    add("--slo-ttft", type=float, default=2.0, metavar="S", help="goodput: time to first token")
    add("--slo-tpot", type=float, default=50.0, metavar="MS", help="and time per further token")
    add("--speeds", default="", metavar="F,F", help="true speeds in turn, unknown to the router")
    add("--kv-scale", type=float, default=1.0, help="cache size as the router believes it")
    add("--fail", action="append", default=[], metavar="SLOT@S", help="a replica restarts empty")
    add("--slow", action="append", default=[], metavar="SLOT@S", help="a replica halves its speed")
    add("--join", action="append", default=[], metavar="SLOT@S", help="a replica joins only then")
    add(
        "--tier-tokens", type=int, default=0, metavar="TOKENS", help="host memory behind a KV cache"
    )
    add("--tier-told", action="store_true", help="the router's config names --tier-tokens")
    add("--zones", default="", metavar="A,B", help="of replicas and routers, in turn")
    add("--event-lag", type=float, default=0.0, metavar="S", help="of cache events (exact view)")
    add("--scrape-interval", type=float, default=1.0, metavar="S", help="of the engines' metrics")
    add("--json", type=Path, metavar="FILE", help="write everything as JSON")
    add("--html", type=Path, metavar="FILE", help="write a report with charts")
    add("--quiet", action="store_true", help="no progress bar")
    adapters.add_arguments(parser)


def options_of(args: argparse.Namespace) -> LabOptions:
    """Fleet and pacing from the command line. TraceError names the option that is wrong."""
    fleet = fleet_of(args.profile, args.replicas)
    above = {"--rate-scale": args.rate_scale, "--kv-scale": args.kv_scale}
    above |= {"--slo-ttft": args.slo_ttft, "--slo-tpot": args.slo_tpot}
    for name, value in above.items():
        if not 0 < value < 1e6:
            raise TraceError(f"{name} {value:g}: must be above 0 and below 1000000")
    counts = {"--seeds": args.seeds, "--windows": args.windows, "--max-prompt": args.max_prompt}
    for name, count in counts.items():
        if not 1 <= count <= 10_000_000:
            raise TraceError(f"{name} {count}: must be at least 1")
    if not 1 <= args.routers <= MAX_ROUTERS:
        raise TraceError(f"--routers {args.routers}: must be 1 to {MAX_ROUTERS}")
    if not 0 <= args.front_ms < 1e6:
        raise TraceError(f"--front-ms {args.front_ms:g}: must be 0 to 1000000")
    if args.kv_tokens < 0 or args.sessions < 0 or not 0 <= args.think_cap < 1e9:
        raise TraceError("--kv-tokens, --sessions and --think-cap must not be negative")
    if not 0 <= args.tier_tokens < 2**31 or not 0 <= args.event_lag < 1e6:
        raise TraceError("--tier-tokens and --event-lag must not be negative")
    if not 0.01 <= args.scrape_interval < 1e6:
        raise TraceError(f"--scrape-interval {args.scrape_interval:g}: must be at least 0.01")
    return LabOptions(
        fleet=fleet,
        speeds=_speeds(args.speeds, len(fleet)),
        kv_tokens=args.kv_tokens,
        rate=args.rate_scale,
        think_cap_s=args.think_cap,
        max_prompt=args.max_prompt,
        view=args.view,
        kv_scale=args.kv_scale,
        front_s=args.front_ms / 1000,
        routers=args.routers,
        share_s=SHARE_S if args.share == "on" else 0.0,
        admission=Admission(enabled=args.admission == "on"),
        changes=tuple(
            _change(what, text, len(fleet)) for what in CHANGES for text in getattr(args, what)
        ),
        tier_tokens=args.tier_tokens,
        tier_told=args.tier_told,
        zones=tuple(filter(None, args.zones.split(","))),
        view_lag_s=args.event_lag,
        scrape_s=args.scrape_interval,
    )


def _speeds(text: str, replicas: int) -> tuple[float, ...]:
    if not text:
        return ()
    try:
        factors = [float(word) for word in text.split(",")]
    except ValueError:
        raise TraceError(f"--speeds {text}: must be numbers with commas between") from None
    if not all(0.001 <= factor <= 1000 for factor in factors):
        raise TraceError(f"--speeds {text}: each must be 0.001 to 1000")
    return tuple(islice(cycle(factors), replicas))


def _change(what: str, text: str, replicas: int) -> Change:
    slot, _, at_s = text.partition("@")
    try:
        change = Change(at_s=float(at_s), slot=int(slot), what=what)
    except ValueError:
        raise TraceError(f"--{what} {text}: must be SLOT@SECONDS") from None
    if not 0 <= change.slot < replicas or not 0 <= change.at_s < 1e9:
        raise TraceError(f"--{what} {text}: slot 0 to {replicas - 1}, seconds from 0 on")
    return change


def _policies(text: str) -> list[str]:
    """Names that the core can build, each once."""
    names = list(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    if not names:
        raise TraceError("--policy: names no policy; --policy list names them")
    for name in names:
        build_parts(PoolConfig(policy=name), "-")
    return names


def _listing(args: argparse.Namespace) -> bool:
    if args.policy == "list":
        print("\n".join(POLICIES))
    elif args.profile == "list":
        print(
            "\n".join(
                f"{name:<24}{each.kv_tokens:>10,} KV tokens" for name, each in PRESETS.items()
            )
        )
    else:
        return False
    return True


def _notes(args: argparse.Namespace, samples: Sequence[Sample]) -> list[str]:
    first = samples[0].workload
    requests = sum(sample.workload.requests for sample in samples)
    return [
        f"{first.name}: {requests:,} requests in {len(samples)} sample(s) ({first.note})",
        f"{args.replicas} x {args.profile}, {args.rate_scale:g} x the recorded rate, {args.view}"
        f" view{_routers(args)}{', admission on' if args.admission == 'on' else ''};"
        f" good: TTFT <= {args.slo_ttft:g} s and TPOT <= {args.slo_tpot:g} ms",
        "Times in seconds of modelled replicas: read rank and ratio, not a certain fleet's figures."
        " Ratios are geometric means over the samples with a paired 95 % interval.",
    ]


def _fit(args: argparse.Namespace, recorded: Recorded | None) -> None:
    """Fleet options that were not given: as a record says."""
    replicas, kv_tokens = (4, 0) if recorded is None else fleet_size(recorded)
    args.replicas = replicas if args.replicas is None else args.replicas
    args.kv_tokens = args.kv_tokens or kv_tokens


def _backtest(
    args: argparse.Namespace, recorded: Recorded | None, options: LabOptions
) -> int | None:
    """Tell the error; the exit status, or None when other policies may be told of."""
    if recorded is None:
        raise TraceError(f"--backtest: {args.trace} is not what --record wrote")
    found = backtest(recorded, options, args.ran)
    print(found.text())
    if found.fits and args.policy:
        return None
    if not args.policy:
        return 0
    print(
        "warmlane replay: the lab does not predict this record: other policies are not told of."
        " Choose the --profile, --kv-tokens or --speeds of your replicas",
        file=sys.stderr,
    )
    return 3


def _routers(args: argparse.Namespace) -> str:
    if args.routers == 1:
        return ""
    return f", {args.routers} routers that {'hear' if args.share == 'on' else 'ignore'} each other"


@contextmanager
def _progress(args: argparse.Namespace) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal; what is yielded takes (what runs, share of the whole done)."""
    console = Console(stderr=True)
    quiet = args.quiet or not console.is_terminal
    with Progress(console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _with_adapters(args: argparse.Namespace) -> int:
    """The lab of adapters in place of a trace."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    adapters.refuse_others(args, parser.parse_args([]))
    args.replicas = adapters.REPLICAS if args.replicas is None else args.replicas
    load = adapters.workload_of(args, options_of(args).fleet)
    policies = adapters.policies_of(args.policy or adapters.POLICIES)
    seeds = range(args.seed, args.seed + args.seeds)
    with _progress(args) as tell:
        found = adapters.compare(load, policies, seeds, tell)
    notes = adapters.notes(args, load, found[0].requests)
    _write(args, notes, found)
    print("\n".join([*notes, aligned(adapters.rows(found))]))
    return 0


def _write(
    args: argparse.Namespace, notes: list[str], summaries: Sequence[Summary | adapters.Told]
) -> None:
    if args.json:
        given = {key: value for key, value in vars(args).items() if key not in ("json", "html")}
        told = {"warmlane": __version__, "notes": notes, "arguments": given}
        text = msgspec.json.encode(told | {"policies": summaries})
        args.json.write_bytes(msgspec.json.format(text) + b"\n")
    if args.html:
        charted = [each for each in summaries if isinstance(each, Summary)]
        args.html.write_text(page(f"warmlane replay: {args.trace}", notes, charted))


def run(args: argparse.Namespace) -> int:
    """Print the table, write the reports. Exit status 2 on bad input, 3: a what-if is refused."""
    try:
        if _listing(args):
            return 0
        for path in filter(None, (args.json, args.html)):
            if not path.parent.is_dir() or path.is_dir():
                raise TraceError(f"{path}: cannot be written")
        if args.adapters:
            return _with_adapters(args)
        if not args.trace:
            raise TraceError("which trace? a file, or one of " + ", ".join(BUILT_IN))
        recorded = record_at(args.trace, args.format)
        _fit(args, recorded)
        options, policies = options_of(args), _policies(args.policy or DEFAULT_POLICIES)
        logging.getLogger("warmlane.watchdog").setLevel(logging.ERROR)  # of modelled replicas
        if args.backtest:
            status = _backtest(args, recorded, options)
            if status is not None:
                return status
        seeds = range(args.seed, args.seed + args.seeds)
        kept = {each: getattr(args, each) for each in ("windows", "sessions", "copies")}
        samples = list(samples_of(args.trace, kind=args.format, seeds=seeds, **kept))
        slo = Slo(args.slo_ttft, args.slo_tpot / 1000)
        with _progress(args) as tell:
            summaries = compare(samples, policies, options, slo, tell)
        notes = _notes(args, samples)
        _write(args, notes, summaries)
    except (TraceError, RouterError, OSError) as error:
        print(f"warmlane replay: {error}", file=sys.stderr)
        return 2
    print("\n".join(notes))
    print(text_table(summaries))
    for each in summaries:
        if each.fallbacks:
            print(f"{each.policy}: its own advice failed {each.fallbacks} times", file=sys.stderr)
    return 0
