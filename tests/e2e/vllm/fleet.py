"""Two real engines that publish events, the wire of one of them in our hand, and a router on top.

The first engine's events are found by the router itself (`auto`, GET /kv_event_sources); the second
one's pass a forwarder that can be cut, so its endpoints stand in the config.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from .engines import (
    DETAILS,
    MODEL,
    Engine,
    WheelsUnavailableError,
    event_flags,
    fetch,
    install,
    kept_port,
    make_model,
)
from .forwarder import Forwarder
from .router import Router
from .witness import Witness

ADAPTERS = ("lora-0", "lora-1")
BLOCKS = 128  # KV blocks of an engine: a third of what the conversations would fill


class Fleet:
    """The engines (not started), and where their events are."""

    def __init__(self, python: Path, models: Path) -> None:
        self.tokenizer = models / MODEL
        self.ports = [(kept_port(), kept_port()) for _ in range(2)]
        self.engines = [
            Engine(python, models, number, ADAPTERS, BLOCKS, self.flags(number))
            for number in range(2)
        ]
        for engine in self.engines:
            engine.name = f"exact-{engine.name}"
            engine.log = engine.log.with_name(f"{engine.name}.log")
        events, replay = self.ports[1]
        self.wires = [Forwarder(events), Forwarder(replay)]
        self.witness = Witness({self.replica(n): self.ports[n][0] for n in range(2)})

    def flags(self, number: int) -> list[str]:
        events, replay = self.ports[number]
        return [DETAILS, *event_flags(f"tcp://*:{events}", f"tcp://*:{replay}")]

    def replica(self, number: int) -> str:
        """The replica's name in the router."""
        return f"127.0.0.1:{self.engines[number].port}"

    def twice(self) -> int:
        """Blocks that both hold, by the witness."""
        one, two = (self.witness.engines[self.replica(number)] for number in range(2))
        return len(one.holds() & two.holds())

    def start(self, *numbers: int) -> None:
        for number in numbers:
            self.engines[number].start()
        for number in numbers:
            self.engines[number].wait_ready()

    def close(self) -> None:
        self.witness.close()
        for wire in self.wires:
            wire.close()
        for engine in self.engines:
            engine.kill()

    def replicas(self) -> list[dict[str, str]]:
        """For the router's config."""
        events, replay = self.wires
        through = f"tcp://127.0.0.1:{events.port},tcp://127.0.0.1:{replay.port}"
        return [
            {"url": self.engines[0].url},
            {"url": self.engines[1].url, "kv_events": through},
        ]

    @contextlib.contextmanager
    def serving(
        self,
        tokenizer: str = "",
        replicas: Sequence[dict[str, str]] | None = None,
        ready: int = 2,
        **more: Any,
    ) -> Iterator[Router]:
        """`warmlane serve` before both; tokenizer: the model's own folder unless given."""
        pool = {
            "name": "default",
            "kv_events": "auto",
            "tokenizer": tokenizer or str(self.tokenizer),
            "replicas": self.replicas() if replicas is None else list(replicas),
        }
        # What these engines do on two cores; a request waits for its ids in proportion.
        settings = {"tokens": {"prefill_tokens_per_s": 150.0}, "pools": [pool], **more}
        router = Router([], "default", settings)
        try:
            router.wait_ready(ready)
            yield router
        finally:
            router.stop()


def interpreter() -> Path:
    """The engines' interpreter. Skips the test, with the reason, where it cannot be had."""
    if platform.machine() != "x86_64":
        pytest.skip(f"NO REAL ENGINE TESTED: no CPU wheel for {platform.machine()}")
    try:
        return install()
    except WheelsUnavailableError as reason:
        pytest.skip(f"NO REAL ENGINE TESTED: vLLM's wheels cannot be had here: {reason}")


def start_fleet() -> Fleet:
    """Both engines ready."""
    python = interpreter()
    fleet = Fleet(python, make_model(python))
    try:
        fleet.start(0, 1)
    except BaseException:
        fleet.close()
        raise
    return fleet


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> float:
    """Seconds until it came true; fails when it does not."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        with contextlib.suppress(OSError):
            if condition():
                return passed
        time.sleep(0.05)
    pytest.fail(f"not within {seconds:.0f} s: {what}")


def shown(router: Router) -> dict[str, dict[str, Any]]:
    """GET /admin/v1/replicas, by name."""
    found = json.loads(fetch(f"{router.admin}/admin/v1/replicas"))
    rows = found["replicas"] if isinstance(found, dict) else found
    return {row["name"]: row for row in rows}
