"""The command line: picks a command and hands over to the module that owns it.

Each command lives in a module with `add_arguments(parser)` and `run(args) -> int`. Only the chosen
one is imported, so that `warmlane check-config` never loads a network library. Bad input ends
with exit status 2 and one clear line on stderr; an operator's Ctrl-C with 130.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import NoReturn, Protocol, cast

from warmlane import __version__
from warmlane.router.errors import ConfigError


class Command(Protocol):
    """What a module that owns a command offers: its options, and the command itself.

    `run` returns the exit status.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("warmlane.router.serve", "run the standalone router (HTTP proxy)"),
    "ext-proc": ("warmlane.router.ext_proc", "run the endpoint picker of Envoy-based gateways"),
    "fake-engine": ("warmlane.router.sim.server", "serve a modelled vLLM replica, no GPU needed"),
    "demo": ("warmlane.router.sim.demo", "four embedded replicas, warmlane against round robin"),
    "replay": ("warmlane.router.sim.replay", "replay a trace on a virtual clock, compare policies"),
    "check-config": (
        "warmlane.router.config_cli",
        "check a config file and print it with defaults",
    ),
    "doctor": ("warmlane.router.doctor", "examine live engines and say what to change"),
    "audit": ("warmlane.router.audit", "listen to live engines: what does routing recompute?"),
    "epp-conformance": (
        "warmlane.envoy.conformance.command",
        "try any endpoint picker over gRPC, case by case",
    ),
    "explain": (
        "warmlane.router.explain_cli",
        "ask a running router why it would choose a replica",
    ),
}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and a pointer to --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _top_parser() -> OneLineParser:
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    parser = OneLineParser(
        prog="warmlane",
        usage="warmlane COMMAND [options]",
        description="Cache-aware request router for fleets of LLM inference replicas.",
        epilog=f"commands:\n{listing}\n\n`warmlane COMMAND --help` tells the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"warmlane {__version__}")
    parser.add_argument(
        "command", metavar="COMMAND", choices=list(COMMANDS), help=argparse.SUPPRESS
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    if not words:
        _top_parser().print_help(sys.stderr)
        return 2
    name = _top_parser().parse_args(words[:1]).command
    where, text = COMMANDS[name]
    command = cast(Command, import_module(where))
    parser = OneLineParser(
        prog=f"warmlane {name}",
        description=text[0].upper() + text[1:] + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"warmlane {__version__}")
    command.add_arguments(parser)
    args = parser.parse_args(words[1:])
    try:
        return command.run(args)
    except ConfigError as error:
        sys.stderr.write(f"warmlane {name}: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
