"""A `warmlane serve` process in front of given replicas, as a user starts it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from .engines import CACHE, fetch, free_port

READY_S = 60


class Router:
    """The process, its two ports and its own counters."""

    def __init__(self, replicas: Sequence[str], policy: str, settings: Mapping[str, Any]) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        self.log = CACHE / f"router-{policy}.log"
        command = [sys.executable, "-m", "warmlane", "serve", "--policy", policy]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--admin-port", str(self.admin_port), "--debug-headers"]
        if settings:
            config = CACHE / "router.json"
            config.write_text(json.dumps(settings))
            command += ["--config", str(config)]
        for url in replicas:
            command += ["--replica", url]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | {"PYTHONSAFEPATH": "1"},
            )

    def wait_ready(self, replicas: int) -> None:
        """Return when /readyz answers 200 and that many replicas may receive requests."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                fetch(f"{self.admin}/readyz", timeout=5)
                if self.total("warmlane_replica_ready") == replicas:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the router did not become ready:\n{self.log.read_text()[-3000:]}")

    def total(self, name: str, **labels: str) -> float:
        """Sum over the samples of one of the router's own metrics with these labels."""
        text = fetch(f"{self.admin}/metrics").decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stop(self) -> None:
        """SIGTERM, then SIGKILL if the drain takes long."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=15)


@contextlib.contextmanager
def serving(
    replicas: Sequence[str], policy: str = "default", settings: Mapping[str, Any] | None = None
) -> Iterator[Router]:
    """settings: sections of the config file."""
    router = Router(replicas, policy, settings or {})
    try:
        router.wait_ready(len(replicas))
        yield router
    finally:
        router.stop()
