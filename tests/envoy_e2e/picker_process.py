"""A `warmlane ext-proc` process, as a user starts it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from .client import Ask, Http1

READY_S = 90.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Picker:
    """`await start()`, `port`, `await total(metric)`, `kill()`, `await stop()`.

    The port stays the same over restarts, so that Envoy finds it again.
    """

    def __init__(self, replicas: Sequence[str], folder: Path, *options: str) -> None:
        self.replicas = replicas
        self.options = options
        self.port, self.health_port, self.metrics_port = free_port(), free_port(), free_port()
        self.log = folder / f"picker-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        words = [sys.executable, "-m", "warmlane", "ext-proc", "--host", "127.0.0.1"]
        words += ["--port", str(self.port), "--health-port", str(self.health_port)]
        words += ["--metrics-port", str(self.metrics_port), *self.options]
        for endpoint in self.replicas:
            words += ["--replica", f"http://{endpoint}"]
        return words

    async def start(self) -> None:
        """Return when every replica is ready."""
        self.process = self._spawn()
        try:
            await asyncio.wait_for(self._ready(), READY_S)
        except BaseException:
            await self.kill()
            raise

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as out:
            return subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | {"PYTHONSAFEPATH": "1"},
            )

    async def _ready(self) -> None:
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the picker ended:\n{self.log.read_text()[-2000:]}")
            try:
                if await self.total("warmlane_replica_ready") == len(self.replicas):
                    return
            except OSError:
                pass  # not listening yet
            await asyncio.sleep(0.05)

    async def total(self, name: str, **labels: str) -> float:
        """Sum over the samples of one of the picker's own metrics with these labels."""
        peer = await Http1.connect(self.metrics_port)
        text = (await peer.ask(Ask(path="/metrics", method="GET", host="localhost"))).body.decode()
        peer.close()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def reaches(self, name: str, wanted: float, **labels: str) -> None:
        """Wait, ten seconds at most, until a metric has this value."""
        for _ in range(500):
            if await self.total(name, **labels) == wanted:
                return
            await asyncio.sleep(0.02)
        told = await self.total(name, **labels)
        raise AssertionError(f"{name} is {told}, not {wanted}:\n{self.log.read_text()[-1000:]}")

    async def settled(self) -> None:
        """Wait until no decision is open, then check that none was closed by its age."""
        await self.reaches("warmlane_open_tickets", 0)
        assert await self.total("warmlane_leaked_tickets_total") == 0

    async def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        await asyncio.to_thread(self.process.wait, 10)

    def terminate(self) -> None:
        """SIGTERM: the drain begins; `ended` tells when it is over."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, timeout_s: float = 15.0) -> int:
        """Exit status."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, timeout_s)

    async def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.terminate()
            try:
                await self.ended()
            except subprocess.TimeoutExpired:
                await self.kill()
