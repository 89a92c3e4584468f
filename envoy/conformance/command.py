"""`warmlane epp-conformance HOST:PORT`: options, the table, the exit status.

0: every case that ran passed; 1: one failed; 2: nothing could be run (address, options, TLS).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from warmlane.envoy.conformance.target import (
    FEATURES,
    MODES,
    Target,
    address,
    features,
    is_endpoint,
)
from warmlane.router.errors import ConfigError

if TYPE_CHECKING:
    from warmlane.envoy.conformance.suite import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `warmlane epp-conformance`."""
    add = parser.add_argument
    add("target", nargs="?", metavar="HOST:PORT", help="the picker's ext_proc port")
    add("--health", metavar="HOST:PORT", help="its health port; default: the same port")
    add("--plaintext", action="store_true", help="no TLS")
    add(
        "--ca", default="", metavar="FILE", help="verify its certificate; default: as gateways, not"
    )
    add("--server-name", default="", help="name to verify and to send; default: HOST")
    add(
        "--endpoint",
        action="append",
        default=[],
        metavar="IP:PORT",
        help="an endpoint of the pool; repeat for each",
    )
    add("--model", default="", help="a model that the pool serves")
    add("--alias", default="", metavar="NAME=TARGET[|TARGET...]", help="a name that is rewritten")
    add("--adapter", default="", metavar="NAME", help="a LoRA adapter that the pool serves")
    add("--sheddable", default="", metavar="NAME", help="an objective of negative priority")
    add("--body-mode", choices=MODES, default="full-duplex", help="of the request")
    add(
        "--response-phase",
        choices=("full", "headers", "none"),
        default="full",
        help="what the gateway sends of the response",
    )
    add(
        "--expect",
        action="append",
        default=[],
        metavar="FEATURE[,...]",
        help="optional behaviour to demand; all, then -NAME to take one out; see --list",
    )
    add("--serve", action="store_true", help="be the engines: listen on each --endpoint")
    add("--settle", type=float, default=3.0, metavar="S", help="time to see engines change")
    add("--timeout", type=float, default=5.0, metavar="S", help="longest wait for one answer")
    add("--large", type=int, default=1_000_000, metavar="BYTES", help="body of request.large")
    add(
        "--resets",
        type=int,
        default=1_200,
        metavar="N",
        help="streams of stream.envoy-resets; 0: none",
    )
    add("--terminate", type=int, default=0, metavar="PID", help="end with SIGTERM to the picker")
    add("--only", action="append", default=[], metavar="PATTERN", help="cases by id, as subset.*")
    add("--skip", action="append", default=[], metavar="PATTERN", help="cases to leave out")
    add("--json", action="store_true", help="the result as one JSON object")
    add("--verbose", action="store_true", help="the messages of each failed case")
    add("--list", action="store_true", help="list cases and features, run nothing")


def target_from(args: argparse.Namespace) -> Target:
    """Checked options. ConfigError with one clear line."""
    if not args.target:
        raise ConfigError("HOST:PORT of the picker is missing")
    if not args.model:
        raise ConfigError("--model is missing: the name of a model that the pool serves")
    for endpoint in args.endpoint:
        if not is_endpoint(endpoint):
            raise ConfigError(f"--endpoint: expected IP:PORT: {endpoint!r}")
    name, sign, rest = args.alias.partition("=")
    others = tuple(rest.split("|"))
    if args.alias and not (name and sign and all(others)):
        raise ConfigError(f"--alias: expected NAME=TARGET[|TARGET...]: {args.alias!r}")
    if args.plaintext and args.ca:
        raise ConfigError("--plaintext and --ca exclude each other")
    if args.serve and not args.endpoint:
        raise ConfigError("--serve needs --endpoint")
    if args.timeout <= 0 or args.settle < 0 or args.large < 1 or args.resets < 0:
        raise ConfigError("--timeout, --settle, --large and --resets must not be negative")
    host, port = address(args.target, "HOST:PORT")
    return Target(
        host=host,
        port=port,
        tls="none" if args.plaintext else "verify" if args.ca else "skip",
        ca=args.ca,
        server_name=args.server_name,
        health=address(args.health, "--health") if args.health else None,
        endpoints=tuple(dict.fromkeys(args.endpoint)),
        model=args.model,
        alias=name,
        aliased=others if name else (),
        adapter=args.adapter,
        sheddable=args.sheddable,
        body_mode=MODES[args.body_mode],
        phase=args.response_phase,
        expect=features(args.expect),
        timeout_s=args.timeout,
        settle_s=args.settle,
        large_bytes=args.large,
        resets=args.resets,
        serve=args.serve,
        terminate=args.terminate,
    )


def run(args: argparse.Namespace) -> int:
    """Run the suite and print it; the exit status."""
    if args.list:
        listing(sys.stdout)
        return 0
    target = target_from(args)
    suite = load()
    cases = suite.chosen(args.only, args.skip)
    if not cases:
        raise ConfigError("no case fits --only and --skip")
    width = max(len(case.id) for case in cases)

    def tell(result: Result) -> None:
        if not args.json:
            sys.stdout.write(line(result, width) + "\n")
            if result.verdict == "fail" and args.verbose:
                sys.stdout.writelines(f"       {item}\n" for item in result.transcript)
            sys.stdout.flush()

    try:
        results = asyncio.run(suite.run_suite(target, cases, tell))
    except (OSError, TimeoutError) as error:
        raise ConfigError(f"{args.target}: cannot be reached: {error or 'time-out'}") from error
    total = totals(results)
    if args.json:
        rows = [msgspec.to_builtins(result) for result in results]
        json.dump({"target": args.target, **total, "cases": rows}, sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        sys.stdout.write(
            f"{total['pass']} passed, {total['fail']} failed, {total['skip']} skipped\n"
        )
    return 1 if total["fail"] else 0


def load() -> ModuleType:
    """The suite itself. ConfigError: grpcio and protobuf, the extra that it needs, are missing."""
    try:
        return import_module("warmlane.envoy.conformance.suite")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise ConfigError(
            f"{error.name} is not installed: pip install 'warmlane[conformance]'"
        ) from error


def totals(results: list[Result]) -> dict[str, Any]:
    """How many of each verdict."""
    return {
        verdict: sum(result.verdict == verdict for result in results)
        for verdict in ("pass", "fail", "skip")
    }


def line(result: Result, width: int) -> str:
    """One case on one line."""
    head = f"{result.verdict.upper()}  {result.id:<{width}}  "
    if result.verdict == "fail":
        text = f"{result.title} [{result.source}]: expected {result.expected}; came {result.came}"
        return head + " ".join(text.split())
    if result.verdict == "skip":
        return f"{head}{result.detail}"
    return f"{head}{result.title} [{result.source}]"


def listing(out: TextIO) -> None:
    """All cases and features."""
    cases = load().CASES
    width = max(len(case.id) for case in cases)
    for case in cases:
        out.write(f"{case.id:<{width}}  {case.title} [{case.source}]\n")
    out.write("\nfeatures for --expect:\n")
    wide = max(map(len, FEATURES))
    for name, text in FEATURES.items():
        out.write(f"  {name:<{wide}}  {text}\n")
