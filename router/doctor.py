"""`warmlane doctor`: examines live engines end to end and says what to change. Floor 8, a command.

Each replica alone (HTTP, metrics, cache, events, token ids, adapters), then all of them against
each other. Read-only but for two requests of one token each. Exit status 0: nothing failed; 1:
something did; 2: nothing could be examined (options, config, key).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from warmlane.router.config import Config, PoolConfig
from warmlane.router.config_events import check_events
from warmlane.router.config_load import load, normal_spec
from warmlane.router.doctor_cache import cache
from warmlane.router.doctor_tokens import library, tokens
from warmlane.router.doctor_visit import (
    Line,
    Patient,
    Visit,
    adapters,
    identity,
    metrics,
    reachable,
)
from warmlane.router.errors import ConfigError
from warmlane.router.feeds.client import engine_headers, open_session
from warmlane.router.types import ReplicaSpec

_AT_ONCE: Final = 8
_COLOUR: Final = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane doctor`."""
    add = parser.add_argument
    add("--replica", action="append", default=[], metavar="URL", help="an engine; repeat for each")
    add("--config", metavar="FILE", help="examine the static replicas of a router's config")
    add("--model", default="", help="a name that the engines must serve")
    add("--engine-api-key-file", default="", metavar="FILE", help="the engines' key")
    add(
        "--kv-events",
        default="auto",
        metavar="off|auto|EVENTS[,REPLAY]",
        help="where their events are; {host} is the replica's host",
    )
    add("--tokenizer", default="", metavar="PATH", help="model folder to compare token ids with")
    add("--no-requests", action="store_true", help="send nothing that generates")
    add("--timeout", type=float, default=10.0, metavar="S", help="longest wait for one answer")
    add("--json", action="store_true", help="the result as one JSON object")


def patients_from(args: argparse.Namespace) -> list[Patient]:
    """Whom to examine. ConfigError with one clear line."""
    if bool(args.replica) == bool(args.config):
        raise ConfigError("give --replica URL (one or more) or --config FILE")
    if args.timeout <= 0:
        raise ConfigError("--timeout must be above 0")
    common = {"model": args.model, "generate": not args.no_requests, "timeout_s": args.timeout}
    if args.config:
        return _of_config(load(args.config), common)
    check_events(args.kv_events, "--kv-events")
    if args.tokenizer not in ("", "engine") and not Path(args.tokenizer).exists():
        raise ConfigError(f"--tokenizer: {args.tokenizer}: there is nothing")
    headers = engine_headers(args.engine_api_key_file, "", "--engine-api-key-file")
    return [
        Patient(
            spec=normal_spec(ReplicaSpec(url=url), "--replica"),
            headers=headers,
            kv_events=args.kv_events,
            tokenizer=args.tokenizer,
            **common,
        )
        for url in args.replica
    ]


def _of_config(config: Config, common: dict[str, Any]) -> list[Patient]:
    found = [
        _of_pool(pool, f"pools[{number}]", spec, common)
        for number, pool in enumerate(config.pools)
        for spec in pool.replicas
    ]
    if not found:
        raise ConfigError("--config: no static replica in it; name them with --replica")
    return found


def _of_pool(pool: PoolConfig, where: str, spec: ReplicaSpec, common: dict[str, Any]) -> Patient:
    return Patient(
        spec=normal_spec(spec, where),
        headers=engine_headers(pool.engine_api_key_file, pool.engine_api_key_env, where),
        kv_events=spec.kv_events or pool.kv_events,
        tokenizer="" if pool.tokenizer == "off" else pool.tokenizer,
        **common,
    )


async def examine(patients: Sequence[Patient]) -> list[Line]:
    """Every line, replica by replica, and those that compare them last."""
    gate = asyncio.Semaphore(_AT_ONCE)
    session = open_session(4.0)
    try:
        visits = [Visit(patient, session) for patient in patients]
        await asyncio.gather(*(_one(visit, gate) for visit in visits))
    finally:
        await session.close()
    return [line for visit in visits for line in visit.lines] + compare(visits)


async def _one(visit: Visit, gate: asyncio.Semaphore) -> None:
    async with gate:
        if not await reachable(visit) or not await identity(visit):
            return
        await metrics(visit)
        await cache(visit)
        await tokens(visit)
        await adapters(visit)


def compare(visits: Sequence[Visit]) -> list[Line]:
    """What the replicas of one model should have in common."""
    lines: list[Line] = []
    groups: dict[str, list[Visit]] = {}
    for visit in visits:
        if visit.model:
            groups.setdefault(min(visit.models, default=visit.model), []).append(visit)
    for model, group in groups.items():
        if len(group) < 2:
            continue
        _differ(lines, model, "versions", {each.name: each.version for each in group}, "warn")
        blocks = {each.name: str(each.block) for each in group if each.block}
        _differ(lines, model, "block-sizes", blocks, "warn")
        for name in sorted({name for each in group for name in each.adapters}):
            paths = {each.name: each.adapters[name] for each in group if name in each.adapters}
            _differ(lines, model, f"adapter {name}", paths, "fail")
    return lines


_ADVICE: Final = {
    "versions": "fine during a rolling upgrade; hashes and events may differ for good",
    "block-sizes": "works (one chain of keys a size), but costs every decision a little",
}


def _differ(
    lines: list[Line], model: str, check: str, values: dict[str, str], verdict: str
) -> None:
    told = sorted(set(values.values()))
    if len(told) < 2:
        return
    shown = ", ".join(f"{name} {value}" for name, value in sorted(values.items()))
    advice = _ADVICE.get(check, "one name, several weights: give them names of their own")
    line = {"replica": f"all of {model}", "check": check, "verdict": verdict}
    lines.append(msgspec.convert(line | {"found": shown, "advice": advice}, Line))


def run(args: argparse.Namespace) -> int:
    """Examine and print; the exit status."""
    patients = patients_from(args)
    if any(patient.tokenizer not in ("", "engine") for patient in patients):
        library()
    # The intake tells its own changes; here the lines of the table do.
    logging.getLogger("warmlane").setLevel(logging.CRITICAL)
    lines = asyncio.run(examine(patients))
    failed = sum(line.verdict == "fail" for line in lines)
    if args.json:
        rows = [msgspec.to_builtins(line) for line in lines]
        json.dump({"failed": failed, "lines": rows}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        show(lines, Console(width=None if sys.stdout.isatty() else 160))
    return 1 if failed else 0


def show(lines: Sequence[Line], console: Console) -> None:
    """A table a replica; what to change stands below each finding."""
    for name in dict.fromkeys(line.replica for line in lines):
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=name, title_justify="left")
        table.add_column("")
        table.add_column("check", no_wrap=True)
        table.add_column("found")
        for line in lines:
            if line.replica != name:
                continue
            shown = line.found + (f"\n-> {line.advice}" if line.advice else "")
            colour = _COLOUR[line.verdict]
            table.add_row(f"[{colour}]{line.verdict}[/]", line.check, shown.replace("[", r"\["))
        console.print(table)
    counts = {word: sum(line.verdict == word for line in lines) for word in _COLOUR}
    console.print(", ".join(f"{number} {word}" for word, number in counts.items()))
