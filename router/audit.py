"""`warmlane audit`: what a fleet recomputes because of its routing, before anything is changed.

Floor 8, a command. Listens for a while (`audit_listen`), does the sums (`audit_sums`) and prints.
No request goes through it and none is sent. Exit status 0: every replica was heard in full; 1: a
result, but something is missing in it; 2: no result (options, or fewer than two replicas heard).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from time import monotonic
from typing import Final

import msgspec
from rich.console import Console

from warmlane.router.audit_listen import Listener, Mark
from warmlane.router.audit_report import Report, report
from warmlane.router.audit_sums import Slice
from warmlane.router.audit_table import show
from warmlane.router.config_events import check_events
from warmlane.router.config_load import normal_spec
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.client import engine_headers, open_session
from warmlane.router.types import ReplicaSpec

SLICES: Final = 40  # of the audit, for the range
SHORTEST_S: Final = 0.25  # between two looks at the metrics
LONGEST_S: Final = 5.0
JOIN_S: Final = 6.0  # an idle engine answers a replay within 0.1 s, a large one takes longer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane audit`."""
    add = parser.add_argument
    add("--replica", action="append", default=[], metavar="URL", help="an engine; repeat for each")
    add("--duration", type=float, default=300.0, metavar="S", help="how long to listen")
    add(
        "--kv-events",
        action="append",
        metavar="auto|EVENTS[,REPLAY]",
        help="where events are: once for all ({host} is the replica's host) or once a replica",
    )
    add("--engine-api-key-file", default="", metavar="FILE", help="the engines' key")
    add("--kv-bytes-per-token", type=float, default=0.0, metavar="N", help="KV cache of a token")
    add("--gpus-per-replica", type=int, default=1, metavar="N", help="for the GPU-hours")
    add("--timeout", type=float, default=5.0, metavar="S", help="longest wait for one answer")
    add("--json", action="store_true", help="the result as one JSON object")


def wanted(args: argparse.Namespace) -> list[tuple[ReplicaSpec, str]]:
    """Whom to hear and where. ConfigError with one clear line."""
    settings = args.kv_events or ["auto"]
    if len(set(args.replica)) < 2:
        raise ConfigError("give --replica URL at least twice: an audit compares replicas")
    if not 0.5 <= args.duration <= 7 * 86_400:
        raise ConfigError("--duration must be 0.5 s to a week")
    if args.timeout <= 0 or args.gpus_per_replica < 1 or args.kv_bytes_per_token < 0:
        raise ConfigError("--timeout, --gpus-per-replica and --kv-bytes-per-token: out of range")
    if len(settings) not in (1, len(args.replica)):
        raise ConfigError("give --kv-events once, or once for each --replica")
    for setting in settings:
        check_events(setting, "--kv-events")
        if setting == "off":
            raise ConfigError("--kv-events: without events there is nothing to audit")
    if len(settings) == 1:
        settings = settings * len(args.replica)
    specs = [normal_spec(ReplicaSpec(url=url), "--replica") for url in args.replica]
    return list(zip(specs, settings, strict=True))


async def audit(args: argparse.Namespace) -> Report:
    """Listen for `args.duration` seconds; the result."""
    headers = engine_headers(args.engine_api_key_file, "", "--engine-api-key-file")
    session = open_session(4.0)
    listener = Listener(wanted(args), session, headers, args.timeout)
    try:
        await listener.start(JOIN_S)
        await listener.scrape()
        return await _listen(listener, args)
    finally:
        await listener.close()
        await session.close()


async def _listen(listener: Listener, args: argparse.Namespace) -> Report:
    listener.join()
    first = listener.marks()
    began = monotonic()
    # With fewer than two publishers there is nothing to wait for: say so at once.
    open_ears = sum(ear.feed.source is not None for ear in listener.ears)
    end = began + (args.duration if open_ears > 1 else 0.0)
    for ear in listener.ears:
        if not ear.hears:
            sys.stderr.write(f"warmlane audit: not heard yet: {ear.replica.name}: {ear.why}\n")
    every = min(LONGEST_S, max(SHORTEST_S, args.duration / SLICES))
    slices: list[Slice] = []
    last = first
    while (now := monotonic()) < end:
        await asyncio.sleep(min(every, end - now))
        listener.join()
        await listener.scrape()
        last, before = listener.marks(), last
        slices.append(_slice(before, last))
        _progress(monotonic() - began, args.duration, slices, args.json)
    return report(
        listener,
        first,
        slices,
        seconds=monotonic() - began,
        gpus=args.gpus_per_replica,
        bytes_per_token=args.kv_bytes_per_token,
    )


def _slice(before: list[Mark], after: list[Mark]) -> Slice:
    """What was counted between two looks, of the replicas that are heard."""
    grown = [new.since(old) for old, new in zip(before, after, strict=True) if new.joined]
    return Slice(
        sum(each.computed for each in grown),
        sum(each.avoidable for each in grown),
        sum(each.sure for each in grown),
    )


def _progress(passed: float, duration: float, slices: list[Slice], quiet: bool) -> None:
    if quiet or not sys.stderr.isatty():
        return
    computed = sum(each.computed for each in slices)
    again = sum(each.avoidable for each in slices)
    part = f"{100 * again / computed:.1f} %" if computed else "-"
    sys.stderr.write(
        f"\r{min(passed, duration):.0f} of {duration:.0f} s: {computed:,.0f} prompt tokens "
        f"computed, {part} of them held elsewhere   "
    )
    if passed >= duration:
        sys.stderr.write("\n")
    sys.stderr.flush()


def run(args: argparse.Namespace) -> int:
    """Listen and print; the exit status."""
    wanted(args)
    # The intake tells its own changes; here the lines of the table do.
    logging.getLogger("warmlane").setLevel(logging.CRITICAL)
    found = asyncio.run(audit(args))
    if args.json:
        json.dump(msgspec.to_builtins(found), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        show(found, Console(width=None if sys.stdout.isatty() else 160))
    if found.status == 2:
        sys.stderr.write(f"warmlane audit: {found.notes[0]}\n")
    return found.status
