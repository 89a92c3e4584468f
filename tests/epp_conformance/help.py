"""One run of the suite against a picker in this process."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.epp_conformance.picker import Picker
from warmlane.envoy.conformance.suite import Result, chosen, run_suite
from warmlane.envoy.conformance.target import FEATURES, Target

ALIAS = ("nick", "m", "m2")
ADAPTER = "lora-a"


def free_endpoints(count: int) -> tuple[str, ...]:
    """Addresses on loopback that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return tuple(f"127.0.0.1:{port}" for port in ports)


def picker(flaws: Sequence[str] = (), *, watch: bool = False) -> Picker:
    return Picker(free_endpoints(3), flaws=flaws, alias=ALIAS, adapter=ADAPTER, watch=watch)


def target(served: Picker, **changes: Any) -> Target:
    """Everything is expected of it."""
    base = Target(
        host="127.0.0.1",
        port=served.port,
        tls="none",
        endpoints=served.endpoints,
        model=served.model,
        alias=ALIAS[0],
        aliased=ALIAS[1:],
        adapter=ADAPTER,
        sheddable="sheddable",
        expect=frozenset(FEATURES),
        settle_s=0.3,
        serve=served.watch,
    )
    return msgspec.structs.replace(base, **changes)


async def results(aim: Target, *patterns: str) -> dict[str, Result]:
    """Every chosen case by its id."""
    return {result.id: result for result in await run_suite(aim, chosen(patterns), lambda _: None)}


def told(found: dict[str, Result], verdict: str) -> dict[str, str]:
    """Ids with this verdict, and why."""
    return {
        name: f"expected {item.expected}; came {item.came} {item.detail}"
        for name, item in found.items()
        if item.verdict == verdict
    }
