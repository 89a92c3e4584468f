"""The library face: routes as context managers, its errors, and what it must not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.router.fleet import chat, config_of, idle, router_of, words
from warmlane import Router as PublicRouter
from warmlane.router.config_load import from_data
from warmlane.router.core import Router
from warmlane.router.decide import LAST_RESORT
from warmlane.router.errors import NoReplica, RequestError
from warmlane.router.types import (
    Outcome,
    ReplicaState,
)

SRC = Path(__file__).resolve().parents[2] / "src"


def test_route_opens_and_closes_the_ticket() -> None:
    ticks = iter(range(1000))
    router = PublicRouter(config_of(2), clock=lambda: float(next(ticks)))
    with router.route(model="m", prompt=words(1000)) as route:
        assert router.open_tickets == 1
        assert route.endpoint == f"{route.replica.name}:8000"
        assert route.url == f"http://{route.endpoint}"
        assert [each.slot for each in route.choices] == list(route.decision.choices)
        assert route.hit_tokens == 0
        route.first_token()
        route.finish(Outcome(output_tokens=3, prompt_tokens=1000))
    idle(router)
    with router.route(model="m", prompt=words(1000).encode()) as again:
        assert again.replica is route.replica and again.hit_tokens > 900
        other = next(each for each in again.choices if each is not again.replica)
        again.moved(other)
        assert router.pools["default"].ledger.requests[other.slot] == 1
    idle(router)
    with router.route(tokens=list(range(500))) as third:
        assert third.decision.prompt_tokens == 500
    assert sum(router.metrics.histograms["warmlane_ttft_seconds"]["default"][:-1]) == 1


def test_route_closes_on_any_exception() -> None:
    router = router_of(2)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), router.route(chat(words(100))):
            raise error
    idle(router)


def test_routes_without_a_clock_share_the_load() -> None:
    router = router_of(4)
    seen = []
    for seed in range(40):
        with router.route(prompt=words(300, seed)) as route:
            seen.append(route.replica.name)
    assert {seen.count(name) for name in set(seen)} == {10}


def test_errors_of_the_library() -> None:
    router = router_of(1)
    router.pools["default"].drain("r0")
    with pytest.raises(NoReplica), router.route(prompt="x"):
        pass
    with pytest.raises(RequestError):
        Router(from_data({"pools": [{"models": ["m"], "replicas": ["a:1"]}]})).prepare(
            chat(model="other")
        )


def test_joining_replicas_wait_for_a_probe() -> None:
    """Unless nobody else is there: then they are the last resort."""
    router = Router(config_of(2), joining=True)
    assert router.decide(chat(), 0.0, 1).fallback == LAST_RESORT
    router.pools["default"].set_state(0, ReplicaState.READY)
    decision = router.decide(chat(), 0.0, 1)
    assert decision.choices == (0,) and decision.fallback == ""


def test_the_library_needs_no_network_module() -> None:
    code = (
        "import sys\n"
        "from warmlane import Config, Router\n"
        "from warmlane.router.config_load import from_data\n"
        "router = Router(from_data({'pools': [{'replicas': ['a:1']}]}))\n"
        "with router.route(model='m', prompt='hello ' * 400) as route:\n"
        "    route.first_token()\n"
        "bad = {'asyncio', 'aiohttp', 'uvloop', 'socket', 'httptools', 'zmq', 'ssl'}\n"
        "print(sorted(bad & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
