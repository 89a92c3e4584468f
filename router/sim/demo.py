"""`warmlane demo`, the main job behind `make run`: warmlane against round robin on one slice.

Starts embedded replicas, sends a slice of a real trace (where one is found) or of the built-in
workload through the real proxy, once under round robin and once under warmlane's default policy,
with fresh caches, and prints the table. Then the router goes on with a line to try.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import uvloop

from warmlane.router.sim.demo_fleet import FleetError, Replicas, RouterProcess
from warmlane.router.sim.demo_run import Measured, measure, replica_options
from warmlane.router.sim.demo_slices import Slice, chosen
from warmlane.router.sim.demo_view import View, name_of
from warmlane.router.sim.traces import TraceError, Workload, find_traces

BASELINE = "round-robin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane demo`."""
    add = parser.add_argument
    add("--trace", metavar="FILE", help="trace to play (default: one that is found, see docs)")
    add("--builtin", action="store_true", help="play the built-in workload, whatever is found")
    add("--replicas", type=int, default=4, help="embedded replicas (default: %(default)s)")
    add("--policy", default="default", help="policy of the second run (default: %(default)s)")
    add("--part", type=float, default=1.0, help="share of the slice to play, 0.1 to 1")
    add("--seed", type=int, default=1, help="seed of what a trace leaves open")
    add("--port", type=int, default=8080, help="port of the router that goes on (0: a free one)")
    add("--no-wait", action="store_true", help="end after the table")
    add("--json", metavar="FILE", help="write the measurements there, too")


def run(args: argparse.Namespace) -> int:
    """Exit status 0, 1 when requests failed, 2 on bad input or when a process does not start."""
    view = View()
    try:
        if args.replicas < 1 or not 0 < args.part <= 1:
            raise TraceError("--replicas must be at least 1 and --part within 0..1")
        folder = find_traces(os.environ, Path.cwd() / "x")
        trace = Path(args.trace) if args.trace else None
        workload, piece = chosen(
            trace, folder, builtin=args.builtin, seed=args.seed, part=args.part
        )
    except TraceError as error:
        print(f"warmlane demo: {error}", file=sys.stderr)
        return 2
    if trace is None and not workload.name.startswith("builtin"):
        view.say(f"trace found in {folder} (TRACE=FILE chooses another, --builtin needs none)")
    try:
        rows = uvloop.run(_demo(args, workload, piece, view))
    except FleetError as error:
        print(f"warmlane demo: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"warmlane demo: {error}", file=sys.stderr)
        return 2
    if len(rows) < 2:
        raise KeyboardInterrupt
    return int(any(row.errors for row in rows))


async def _demo(
    args: argparse.Namespace, workload: Workload, piece: Slice, view: View
) -> list[Measured]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    job = asyncio.current_task()
    assert job is not None

    def interrupt() -> None:
        """Before the table: give up. After it: the end that was announced."""
        if not stop.is_set():
            stop.set()
            job.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    rows: list[Measured] = []
    view.headline(workload, piece, args.replicas)
    async with AsyncExitStack() as stack:
        try:
            fleet = Replicas(args.replicas, replica_options(piece))
            stack.push_async_callback(fleet.stop)
            await fleet.start()
            rows.append(await _round(BASELINE, workload, piece, fleet, view))
            router = RouterProcess(fleet.urls, args.policy, _free_port(args.port))
            stack.push_async_callback(router.stop)
            rows.append(await _round(args.policy, workload, piece, fleet, view, router))
            view.table(rows)
            if args.json:
                _write(args.json, rows)
            if not args.no_wait:
                view.invitation(router.url, router.admin_url)
                await stop.wait()
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
            view.say("stopped")
    return rows


def _write(path: str, rows: list[Measured]) -> None:
    Path(path).write_bytes(msgspec.json.encode(rows))


def _free_port(wanted: int) -> int:
    """The wanted port, or 0 (any free one) when somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


async def _round(
    policy: str,
    workload: Workload,
    piece: Slice,
    fleet: Replicas,
    view: View,
    router: RouterProcess | None = None,
) -> Measured:
    """One policy with fresh caches. A router that is not given is started for the round alone."""
    await fleet.reset()
    own = router or RouterProcess(fleet.urls, policy)
    try:
        await own.start()
        with view.bar(name_of(policy), workload.requests) as bar:
            return await measure(workload, piece, fleet, own, policy, bar.on_result)
    finally:
        if router is None:
            await own.stop()
